// What reaches the terminal. Names come from files, and a terminal obeys what is in them.
#include "launch/terminal.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <iostream>

namespace allnorm::launch {
namespace {

// The bytes of the character of UTF-8 at the front that may be shown, or 0.
std::size_t printable_prefix(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  const std::size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < size) return 0;
  std::uint32_t point = first & (0xffu >> (size + 1));
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    point = point << 6 | (byte(i) & 0x3fu);
  }
  constexpr std::uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = point >= 0xd800 && point < 0xe000, c1 = point < 0xa0;
  return point < least[size] || point > 0x10ffff || surrogate || c1 ? 0 : size;
}

std::string as_line(std::string_view text) { return "allnorm: " + for_terminal(text) + "\n"; }

}  // namespace

std::string for_terminal(std::string_view text, Lines lines) {
  constexpr char digits[] = "0123456789abcdef";
  std::string shown;
  while (!text.empty()) {
    std::size_t size = printable_prefix(text);
    if (size > 0) {
      shown += text.substr(0, size);
    } else {
      const auto byte = static_cast<unsigned char>(text.front());
      if (byte == '\n')
        shown += lines == Lines::keep ? '\n' : ' ';
      else
        shown += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
      size = 1;
    }
    text.remove_prefix(size);
  }
  return shown;
}

std::size_t terminal_columns() {
  constexpr std::size_t usual = 80, least = 40;
  ::winsize size{};
  const bool told = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return told ? std::clamp<std::size_t>(size.ws_col, least, usual) : usual;
}

void print_line(std::string_view text) {
  std::cout.flush();
  std::cerr << as_line(text) << std::flush;
}

void print_line_at_once(std::string_view text) {
  const std::string line = as_line(text);
  for (std::size_t at = 0; at < line.size();) {
    const ::ssize_t written = ::write(STDERR_FILENO, line.data() + at, line.size() - at);
    if (written < 0 && errno != EINTR) return;
    at += static_cast<std::size_t>(std::max<::ssize_t>(written, 0));
  }
}

void warn(std::string_view text) { print_line("warning: " + std::string(text)); }

}  // namespace allnorm::launch
