// Reading a command's words, and printing its help from the tables that the program runs on.
#include "launch/help.hpp"

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <limits>

#include <boost/program_options/errors.hpp>
#include <boost/program_options/parsers.hpp>
#include <boost/program_options/value_semantic.hpp>

#include "allnorm/error.hpp"
#include "launch/terminal.hpp"
#include "src/nearest.hpp"

namespace allnorm::launch {

namespace po = boost::program_options;

namespace {

constexpr std::size_t name_width = 26;

// Appends `text` to `out`, which has `column` characters in its last line, broken between words; `more` ends a line
// that goes on.
void wrap(std::ostream& out, std::string_view text, std::size_t column, std::size_t indent,
          std::string_view more = {}) {
  const std::size_t line_width = terminal_columns() - more.size();
  while (!text.empty()) {
    const auto end = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, end);
    if (column > indent && column + 1 + word.size() > line_width) {
      out << more << '\n' << std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out << ' ';
      ++column;
    }
    out << word;
    column += word.size();
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  out << '\n';
}

std::string default_text(const std::string& value) { return value.empty() ? "" : " (" + value + ")"; }

// Gradients of what has no axes of the input are like that.
std::string output_text(const Row& row, const OutputSpec& output) {
  const TensorSpec* of = row.gradient(output.name);
  const bool vectors = of != nullptr && of->role == TensorRole::vectors;
  return (vectors ? shape_text(*of) : shape_text(output.axes)) +
         (output.help.empty() ? "" : ": " + std::string(output.help));
}

// What a value of that option must be, where the type of what it is read into says so.
std::string value_text(const po::option_description& option) {
  const po::value_semantic* semantic = option.semantic().get();
  const auto whole = [](std::int64_t most) { return "must be a whole number of at most " + std::to_string(most); };
  if (dynamic_cast<const po::typed_value<int>*>(semantic)) return whole(std::numeric_limits<int>::max());
  if (dynamic_cast<const po::typed_value<std::int64_t>*>(semantic))
    return whole(std::numeric_limits<std::int64_t>::max());
  return dynamic_cast<const po::typed_value<double>*>(semantic) ? "must be a number" : "must be another";
}

std::string unknown_option(const std::string& given, const po::options_description& description) {
  const std::string bare = given.substr(std::min(given.find_first_not_of('-'), given.size()));
  std::vector<std::string> names{"help"};  // every command has it
  for (const auto& option : description.options()) names.push_back(option->long_name());
  const std::string meant = did_you_mean(bare, names, [](const std::string& name) { return std::string_view(name); });
  const auto at = meant.rfind(' ');
  return "option is '" + given + "', must be one that --help names" +
         (meant.empty() ? "" : meant.substr(0, at + 1) + "--" + meant.substr(at + 1));
}

}  // namespace

po::variables_map parse_options(const Arguments& words, const po::options_description& description) {
  namespace style = po::command_line_style;
  try {
    // Guessing would let a slip of the finger pass as another option.
    const auto parsed =
        po::command_line_parser(words).options(description).style(style::unix_style & ~style::allow_guessing).run();
    for (const auto& option : parsed.options) {
      expect(option.position_key < 0, Code::invalid_argument, [&] {
        return "argument is '" + (option.value.empty() ? "" : option.value.front()) + "', must be an option (--NAME)";
      });
      // A variable of the shell that is not set must not take an option away in silence.
      expect(std::none_of(option.value.begin(), option.value.end(), [](const auto& value) { return value.empty(); }),
             Code::invalid_argument, [&] {
               return "--" + option.string_key + " is empty, must be " +
                      description.find(option.string_key, false).semantic()->name();
             });
    }
    po::variables_map values;
    try {
      po::store(parsed, values);
    } catch (const po::invalid_option_value& error) {
      const std::string name = error.get_option_name();
      const std::string bare = name.substr(std::min(name.find_first_not_of('-'), name.size()));
      const auto given = std::find_if(parsed.options.begin(), parsed.options.end(),
                                      [&](const auto& option) { return option.string_key == bare; });
      const bool known = given != parsed.options.end() && !given->value.empty();
      fail(Code::invalid_argument,
           name + " is '" + (known ? given->value.front() : "") + "', " + value_text(description.find(bare, false)));
    }
    po::notify(values);
    return values;
  } catch (const po::unknown_option& error) {
    fail(Code::invalid_argument, unknown_option(error.get_option_name(), description));
  } catch (const po::multiple_occurrences& error) {
    fail(Code::invalid_argument, error.get_option_name() + " is given twice, must be given once");
  } catch (const po::error& error) {
    fail(Code::invalid_argument, error.what());
  }
}

std::string example_of(const Row& row) {
  const Layer layer(row.name);
  const bool window = layer.options.window > 1, steps = window || layer.options.minibatches > 1;
  std::string text = "allnorm apply " + std::string(row.name) + (steps ? " --input x.{step}.npy" : " --input x.npy");
  for (const TensorSpec& tensor : row.tensors) {
    const std::string name(tensor.name);
    if (tensor.required != nullptr && tensor.required(layer.options))
      text += " --tensor " + name + "=" + name + (steps ? ".{step}.npy" : ".npy");
    else if (tensor.role == TensorRole::parameter || tensor.role == TensorRole::map)
      text += name == "weight" ? " --weight gamma.npy"
              : name == "bias" ? " --bias beta.npy"
                               : " --tensor " + name + "=" + name + ".npy";
  }
  if (steps) text += " --steps " + std::to_string(std::max(layer.options.window, layer.options.minibatches));
  if (layer.options.sync.ranks != Sync::none) text += " --split batch --ranks 2";
  return text + (steps ? " --grad-output dy.{step}.npy" : " --grad-output dy.npy") + " --out results";
}

bool asks_for_help(const Arguments& words) {
  return std::any_of(words.begin(), words.end(), [](const auto& word) { return word == "--help" || word == "-h"; });
}

void print_text(std::ostream& out, std::string_view text) { wrap(out, text, 0, 0); }

void print_examples(std::ostream& out, const std::vector<std::string>& commands) {
  out << (commands.size() == 1 ? "\nExample:\n" : "\nExamples:\n");
  for (const std::string& command : commands) {
    out << "  ";
    wrap(out, command, 2, 2, " \\");
  }
}

void print_lines(std::ostream& out, const std::vector<HelpLine>& lines) {
  for (const HelpLine& line : lines) {
    out << "  " << line.name;
    std::size_t column = 2 + line.name.size();
    if (column + 2 > name_width) {
      out << '\n';
      column = 0;
    }
    out << std::string(name_width - column, ' ');
    wrap(out, line.text, name_width, name_width);
  }
}

std::string spelling(const po::option_description& option) {
  return "--" + option.long_name() + (option.semantic()->max_tokens() > 0 ? " " + option.format_parameter() : "");
}

void print_options(std::ostream& out, const po::options_description& description) {
  std::vector<HelpLine> lines;
  for (const auto& option : description.options()) lines.push_back({spelling(*option), option->description()});
  print_lines(out, lines);
}

const std::vector<std::string>& program_examples() {
  static const std::vector<std::string> examples{
      "allnorm train --norm batch_norm,sync_batch_norm --ranks 4",
      "allnorm apply batch_norm --input x.npy --out results",
      "mpirun -n 2 allnorm apply sync_batch_norm --input x.{rank}.npy --out results", "allnorm info --json"};
  return examples;
}

void print_program_help(std::ostream& out) {
  out << "allnorm: normalization layers over any set of samples, ranks and iterations\n\n"
         "  allnorm COMMAND [options]\n"
         "  allnorm help COMMAND, allnorm COMMAND --help\n"
         "  allnorm --help | --version (-V)\n\nCommands:\n";
  std::vector<HelpLine> lines;
  for (const Command& command : commands()) lines.push_back({std::string(command.name), std::string(command.summary)});
  print_lines(out, lines);
  print_examples(out, program_examples());
  out << "\n";
  print_exit_codes(out);
}

void print_layers(std::ostream& out) {
  std::vector<HelpLine> lines;
  for (const Row& row : catalogue()) lines.push_back({std::string(row.name), std::string(row.summary)});
  print_lines(out, lines);
}

void print_layer_help(std::ostream& out, const Row& row) {
  const Layer layer(row.name);
  out << "allnorm apply " << row.name << " [options]\n\n";
  print_text(out, row.summary);
  print_text(out, "Source: " + std::string(row.source));
  out << "\nTensors (--tensor NAME=FILE.npy):\n";
  std::vector<HelpLine> lines{{"input", "(N,C,space...), required; --input"},
                              {"grad_output", "like input; asks for the gradients; --grad-output"}};
  const bool compares = row.vectors() != nullptr;
  if (row.by_trailing()) lines[0].text = compares ? "(N,K), required; --input" : "any shape, required; --input";
  if (compares) lines[1].text = "(N,M); asks for the gradients; --grad-output";
  for (const TensorSpec& tensor : row.tensors)
    lines.push_back({std::string(tensor.name), shape_text(tensor) + ": " + std::string(tensor.help)});
  print_lines(out, lines);

  if (!row.attributes.empty()) out << "\nAttributes (--set NAME=VALUE; defaults in parentheses):\n";
  lines.clear();
  for (const Attribute& attribute : row.attributes)
    lines.push_back({std::string(attribute.name) + default_text(attribute.get(layer.options)),
                     std::string(attribute.help) + " [" + std::string(attribute.values) + "]"});
  print_lines(out, lines);

  out << "\n";
  print_text(out, "Outputs (NAME.npy in --out; with several ranks NAME.r<rank>, with several steps NAME.s<step>):");
  lines = {{"output", compares ? "(N,M)" : "like input"},
           {"grad_input", "like input; the gradients are written where one is given"}};
  for (const OutputSpec& output : row.outputs) lines.push_back({std::string(output.name), output_text(row, output)});
  print_lines(out, lines);
  print_examples(out, {example_of(row)});
}

const std::vector<HelpLine>& exit_codes() {
  static const std::vector<HelpLine> codes{
      {"0", "success"},
      {"1", "failure while running"},
      {"2", "the command line: a name, an attribute's value, a tensor that is missing"},
      {"3", "a file: unreadable, malformed, or its shape, type or content wrong"},
      {"4", "the ranks disagree with each other"},
      {"5", "a rank is missing, late or left"},
      {"6", "a device, transport or optional part that this build or machine lacks"}};
  return codes;
}

void print_exit_codes(std::ostream& out) {
  out << "Exit codes:\n";
  print_lines(out, exit_codes());
}

}  // namespace allnorm::launch
