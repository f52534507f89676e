#include "launch/vocabulary.hpp"

#include <algorithm>
#include <string_view>

#include <boost/program_options/value_semantic.hpp>

#include "allnorm/catalogue.hpp"
#include "allnorm/error.hpp"
#include "launch/apply.hpp"
#include "launch/choice.hpp"

namespace allnorm::launch {

namespace po = boost::program_options;

namespace {

// An argument's name says what it is.
Takes kind_of(const std::string& argument) {
  if (argument == "NAME=VALUE") return Takes::attribute;
  if (argument == "NAME=FILE.npy") return Takes::tensor;
  if (argument == "LIST") return Takes::layers;
  if (argument == "DIR") return Takes::folder;
  return argument == "FILE" || argument.find('.') != argument.npos ? Takes::file : Takes::other;
}

OptionWords option_words(const po::option_description& option) {
  const po::value_semantic* semantic = option.semantic().get();
  OptionWords made{"--" + option.long_name(), {}, option.description()};
  if (semantic->max_tokens() == 0) return made;
  made.argument = semantic->name();
  made.argument = made.argument.substr(0, made.argument.find(" ("));  // the default follows
  made.takes = kind_of(made.argument);
  made.many = dynamic_cast<const po::typed_value<Words>*>(semantic) != nullptr;
  if (const auto* choice = dynamic_cast<const Choice*>(semantic)) {
    made.takes = Takes::words;
    made.words = choice->words();
  }
  return made;
}

// Of the text that says what an attribute may be, the words that it takes.
Words accepted(const Row& row, const Attribute& attribute) {
  Words words;
  for (std::string_view rest = attribute.values; !rest.empty();) {
    const auto end = std::min(rest.find_first_of(", "), rest.size());
    const std::string_view word = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (word.empty() || (word[0] >= '0' && word[0] <= '9')) continue;
    try {
      Layer layer(row);
      layer.set(attribute.name, word);
      words.emplace_back(word);
    } catch (const Error&) {  // a word of the sentence
    }
  }
  return words;
}

}  // namespace

std::vector<OptionWords> options_of(const Command& command) {
  std::vector<OptionWords> all{{"--help", {}, "print this help"}};
  if (command.options == nullptr) return all;
  const po::options_description description = command.options();
  for (const auto& option : description.options()) all.push_back(option_words(*option));
  return all;
}

Words words_of(const Command& command) { return command.words == nullptr ? Words{} : command.words(); }

Words command_names() {
  Words names;
  for (const Command& command : commands()) names.emplace_back(command.name);
  return names;
}

std::map<std::string, Words> attributes_of_layers() {
  std::map<std::string, Words> all;
  for (const Row& row : catalogue())
    for (const Attribute& attribute : row.attributes) all[std::string(row.name)].emplace_back(attribute.name);
  return all;
}

std::map<std::string, Words> tensors_of_layers() {
  std::map<std::string, Words> all;
  for (const Row& row : catalogue())
    for (const TensorSpec& tensor : tensors_of(row)) all[std::string(row.name)].emplace_back(tensor.name);
  return all;
}

std::map<std::string, Words> attribute_words() {
  std::map<std::string, Words> all;
  for (const Row& row : catalogue())
    for (const Attribute& attribute : row.attributes)
      for (const std::string& word : accepted(row, attribute)) {
        Words& words = all[std::string(attribute.name)];
        if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
      }
  return all;
}

}  // namespace allnorm::launch
