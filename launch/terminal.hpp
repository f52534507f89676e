// What reaches the terminal. Names come from files, and a terminal obeys what is in them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace allnorm::launch {

/// `text` with every control character (C0, C1, DEL) and every byte that is not UTF-8 as \xNN. A line's end becomes a
/// space, or stays.
enum class Lines { join, keep };
std::string for_terminal(std::string_view text, Lines lines = Lines::join);

/// How wide lines of stdout are: 80 columns, or as many as its terminal has where that is narrower (40 at least).
std::size_t terminal_columns();

/// "allnorm: TEXT" on stderr, one line, after what stdout has.
void print_line(std::string_view text);
/// The same without a wait for other threads, which may hold the streams and never let them go.
void print_line_at_once(std::string_view text);
/// The same for what is wrong but does not end the run.
void warn(std::string_view text);

}  // namespace allnorm::launch
