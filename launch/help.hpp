// Reading a command's words, and printing its help from the tables that the program runs on.
#pragma once

#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include <boost/program_options/options_description.hpp>
#include <boost/program_options/variables_map.hpp>

#include "allnorm/catalogue.hpp"
#include "launch/command.hpp"

namespace allnorm::launch {

/// Reads options and tells their notifiers. Options are written in full, and once unless they are lists. Throws
/// invalid_argument for everything that is not an option of `description`.
boost::program_options::variables_map parse_options(const Arguments& words,
                                                    const boost::program_options::options_description& description);

/// True when --help or -h is among the words.
bool asks_for_help(const Arguments& words);

// What follows is at most 80 columns wide, and on a terminal that has fewer as wide as that.

/// A paragraph.
void print_text(std::ostream& out, std::string_view text);
/// Two columns: a name and what it means.
struct HelpLine {
  std::string name, text;
};
void print_lines(std::ostream& out, const std::vector<HelpLine>& lines);
/// Command lines that can be copied, after a line that says so.
void print_examples(std::ostream& out, const std::vector<std::string>& commands);
/// The options of `description`.
void print_options(std::ostream& out, const boost::program_options::options_description& description);

/// `allnorm --help`.
void print_program_help(std::ostream& out);
/// The layers of the catalogue with their summaries.
void print_layers(std::ostream& out);
/// `allnorm apply LAYER --help`: tensors, attributes, outputs, an example.
void print_layer_help(std::ostream& out, const Row& row);
/// The exit codes, as docs/cli.md has them.
const std::vector<HelpLine>& exit_codes();
void print_exit_codes(std::ostream& out);
/// "--out DIR": an option with its argument.
std::string spelling(const boost::program_options::option_description& option);
/// A command line that works once the files are there: every tensor that the row's defaults ask for.
std::string example_of(const Row& row);
/// The examples of `allnorm --help`.
const std::vector<std::string>& program_examples();

}  // namespace allnorm::launch
