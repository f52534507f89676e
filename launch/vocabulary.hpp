// What may follow what on the command line, from the tables that the program runs on.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "launch/command.hpp"

namespace allnorm::launch {

using Words = std::vector<std::string>;

/// What an option's argument is.
enum class Takes { nothing, words, file, folder, layers, attribute, tensor, other };

struct OptionWords {
  std::string name;  ///< "--ranks"
  std::string argument, help;
  Takes takes = Takes::nothing;
  Words words{};      ///< of Takes::words
  bool many = false;  ///< may be given more than once
};
/// The options of a command, --help first.
std::vector<OptionWords> options_of(const Command& command);
/// The words of which one follows the command's name.
Words words_of(const Command& command);

Words command_names();
/// Of `apply LAYER`: by layer the names that --set and --tensor take.
std::map<std::string, Words> attributes_of_layers();
std::map<std::string, Words> tensors_of_layers();
/// By attribute the words that it may be, in any layer; those that are numbers alone are left out.
std::map<std::string, Words> attribute_words();

}  // namespace allnorm::launch
