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

/// Two columns: a name and what it means, wrapped to 100 characters.
struct HelpLine {
  std::string name, text;
};
void print_lines(std::ostream& out, const std::vector<HelpLine>& lines);
/// The options of `description` under its caption.
void print_options(std::ostream& out, const boost::program_options::options_description& description);

/// `allnorm --help`.
void print_program_help(std::ostream& out);
/// The layers of the catalogue with their summaries.
void print_layers(std::ostream& out);
/// `allnorm apply LAYER --help`: tensors, attributes, outputs, an example.
void print_layer_help(std::ostream& out, const Row& row);
/// The exit codes, as docs/cli.md has them.
void print_exit_codes(std::ostream& out);

}  // namespace allnorm::launch
