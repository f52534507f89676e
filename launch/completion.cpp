// `allnorm completion SHELL`: a script by which the shell completes commands, layers, options and their values. It is
// printed once and asks nobody when it runs.
#include <iostream>
#include <string>
#include <string_view>

#include "allnorm/catalogue.hpp"
#include "allnorm/error.hpp"
#include "launch/choice.hpp"
#include "launch/help.hpp"
#include "launch/ranks.hpp"
#include "launch/vocabulary.hpp"
#include "src/nearest.hpp"

namespace allnorm::launch {

namespace {

// The words with spaces between them; `end` behind each.
std::string joined(const Words& words, std::string_view end = {}) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word + std::string(end);
  return text;
}

Words layers() {
  Words names;
  for (const Row& row : catalogue()) names.emplace_back(row.name);
  return names;
}

std::string escaped(std::string_view text, std::string_view special) {
  std::string made;
  for (const char c : text) {
    if (special.find(c) != special.npos) made += '\\';
    made += c;
  }
  return made;
}

// In the quotes of bash and zsh, in which nothing is special but their end.
std::string in_quotes(std::string_view text) {
  std::string made = "'";
  for (const char c : text) made += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return made + "'";
}

// "    KEY) COMMAND'WORDS' ;;" for every key that has words.
void cases(std::ostream& out, const std::map<std::string, Words>& table, std::string_view command,
           std::string_view end = {}) {
  for (const auto& [key, words] : table)
    if (!words.empty()) out << "        " << key << ") " << command << "'" << joined(words, end) << "' ;;\n";
}

// ---- bash -----------------------------------------------------------------------------------------------------------

std::string in_bash(const OptionWords& option) {
  switch (option.takes) {
    case Takes::words:
      return "words='" + joined(option.words) + "'";
    case Takes::file:
      return "kind=file";
    case Takes::folder:
      return "kind=folder";
    case Takes::layers:
      return "kind=list words='" + joined(layers()) + "'";
    case Takes::attribute:
      return "kind=attribute";
    case Takes::tensor:
      return "kind=tensor";
    default:
      return "return";  // a number or a name that nobody knows
  }
}

void print_bash(std::ostream& out) {
  out << R"sh(# Completion of allnorm in bash: eval "$(allnorm completion bash)"
_allnorm() {
  local -a line=("${COMP_WORDS[@]:0:COMP_CWORD}")
  local current=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} layer=${COMP_WORDS[2]} place=$COMP_CWORD
  local option name= words= kind= prefix=
  COMPREPLY=()
  if [[ $command == help ]] && ((place > 1)); then  # help COMMAND is the COMMAND's
    command=$layer place=$((place - 1))
    ((place < 3)) || return
  fi
  if [[ $current == = ]]; then current='' line+=(=); fi
  option=${line[-1]}
  if [[ $option == = ]] && ((place > 1)); then  # bash cuts --set NAME=VALUE and --NAME=VALUE at '='
    option=${line[-3]} name=${line[-2]}
    if [[ $name == --* ]]; then option=$name name=''; fi
  fi
  if ((place == 1)); then
    words=')sh"
      << joined(command_names()) << R"sh( help --help --version'
  else
    case "$command $option" in
)sh";
  for (const Command& command : commands())
    for (const OptionWords& option : options_of(command))
      if (option.takes != Takes::nothing)
        out << "      '" << command.name << " " << option.name << "') " << in_bash(option) << " ;;\n";
  out << "      *) case $command in\n";
  for (const Command& command : commands()) {
    Words options;
    for (const OptionWords& option : options_of(command)) options.push_back(option.name);
    out << "        " << command.name << ") words='" << joined(options) << "'";
    const Words first = words_of(command);
    if (!first.empty()) out << "; ((place != 2)) || words='" << joined(first) << " --help'";
    out << " ;;\n";
  }
  out << R"sh(      esac ;;
    esac
  fi
  case $kind in
    attribute)
      if [[ -n $name ]]; then case $name in
)sh";
  cases(out, attribute_words(), "words=");
  out << "      esac; else compopt -o nospace; case $layer in\n";
  cases(out, attributes_of_layers(), "words=", "=");
  out << R"sh(      esac; fi ;;
    tensor)
      if [[ -n $name ]]; then kind=file; else compopt -o nospace; case $layer in
)sh";
  cases(out, tensors_of_layers(), "words=", "=");
  out << R"sh(      esac; fi ;;
    list)
      compopt -o nospace
      prefix=${current%"${current##*,}"} ;;
  esac
  case $kind in
    file) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    folder) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    *) mapfile -t COMPREPLY < <(compgen -P "$prefix" -W "$words" -- "${current#"$prefix"}") ;;
  esac
}
complete -F _allnorm allnorm
)sh";
}

// ---- zsh ------------------------------------------------------------------------------------------------------------

std::string in_zsh(const OptionWords& option) {
  switch (option.takes) {
    case Takes::words:
      return "(" + joined(option.words) + ")";
    case Takes::file:
      return "_files";
    case Takes::folder:
      return "_files -/";
    case Takes::layers:
      return "_allnorm_layers";
    case Takes::attribute:
      return "_allnorm_attribute";
    case Takes::tensor:
      return "_allnorm_tensor";
    default:
      return " ";
  }
}

void print_zsh(std::ostream& out) {
  out << R"sh(#compdef allnorm
# Completion of allnorm in zsh: a file _allnorm in a folder of $fpath, or eval "$(allnorm completion zsh)".
_allnorm_layers() {
  compset -P '*,'
  compadd -S '' -- )sh"
      << joined(layers()) << R"sh(
}
_allnorm_attribute() {
  if compset -P '*='; then
    case ${${IPREFIX%=}##*=} in
)sh";
  for (const auto& [name, words] : attribute_words())
    out << "      " << name << ") compadd -- " << joined(words) << " ;;\n";
  out << "    esac\n  else\n    case $allnorm_layer in\n";
  for (const auto& [layer, names] : attributes_of_layers())
    if (!names.empty()) out << "      " << layer << ") compadd -S '' -- " << joined(names, "=") << " ;;\n";
  out << R"sh(    esac
  fi
}
_allnorm_tensor() {
  if compset -P '*='; then _files; return; fi
  case $allnorm_layer in
)sh";
  for (const auto& [layer, names] : tensors_of_layers())
    out << "    " << layer << ") compadd -S '' -- " << joined(names, "=") << " ;;\n";
  out << R"sh(  esac
}
_allnorm() {
  local -a commands=(
)sh";
  for (const Command& command : commands())
    out << "    " << in_quotes(std::string(command.name) + ":" + escaped(command.summary, ":\\")) << "\n";
  out << R"sh(  )
  if [[ $words[2] == help ]] && ((CURRENT > 2)); then shift words; ((CURRENT--)); fi
  if ((CURRENT == 2)); then _describe command commands; compadd -- help --help --version; return; fi
  local allnorm_layer=$words[3]
  shift words; ((CURRENT--))
  case $words[1] in
)sh";
  for (const Command& command : commands()) {
    out << "    " << command.name << ") _arguments";
    const Words first = words_of(command);
    if (!first.empty()) out << " \\\n      " << in_quotes("1:word:(" + joined(first) + ")");
    for (const OptionWords& option : options_of(command)) {
      const bool takes = option.takes != Takes::nothing;
      out << " \\\n      "
          << in_quotes((option.many ? "*" : "") + option.name + (takes ? "=" : "") + "[" +
                       escaped(option.help, "[]:\\") + "]" +
                       (takes ? ":" + option.argument + ":" + in_zsh(option) : ""));
    }
    out << " ;;\n";
  }
  out << R"sh(  esac
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _allnorm "$@"; else compdef _allnorm allnorm; fi
)sh";
}

// ---- fish -----------------------------------------------------------------------------------------------------------

std::string in_fish(const OptionWords& option) {
  switch (option.takes) {
    case Takes::nothing:
      return "";
    case Takes::words:
      return " -x -a '" + joined(option.words) + "'";
    case Takes::file:
      return " -r -F";
    case Takes::folder:
      return " -x -a '(__fish_complete_directories)'";
    case Takes::layers:
      return " -x -a '" + joined(layers()) + "'";
    case Takes::attribute:
      return " -x -a '(__allnorm_attribute)'";
    case Takes::tensor:
      return " -x -a '(__allnorm_tensor)'";
    case Takes::other:
      break;
  }
  return " -x";
}

// A switch over a table: one completion a line.
void print_switch(std::ostream& out, std::string_view subject, const std::map<std::string, Words>& table,
                  std::string_view before, std::string_view end) {
  out << "    switch " << subject << "\n";
  for (const auto& [key, words] : table) {
    if (words.empty()) continue;
    out << "        case " << key << "\n            printf '%s\\n'";
    for (const std::string& word : words) out << " " << before << word << end;
    out << "\n";
  }
  out << "    end\n";
}

void print_fish(std::ostream& out) {
  constexpr std::string_view special = "\\'";
  out << R"sh(# Completion of allnorm in fish: allnorm completion fish | source
function __allnorm_layer
    set -l words (commandline -opc)
    test "$words[2]" = help; and set -e words[1]
    echo $words[3]
end
function __allnorm_attribute
    set -l name (string split -m1 = -- (commandline -ct))[1]
)sh";
  print_switch(out, "(__allnorm_layer)", attributes_of_layers(), "", "=");
  print_switch(out, "\"$name\"", attribute_words(), "$name=", "");
  out << "end\nfunction __allnorm_tensor\n";
  print_switch(out, "(__allnorm_layer)", tensors_of_layers(), "", "=");
  out << R"sh(end
complete -c allnorm -f
complete -c allnorm -n __fish_use_subcommand -l version -s V -d 'version, commit and what is built in'
complete -c allnorm -n __fish_use_subcommand -a help -d 'print the help of a command'
complete -c allnorm -n '__fish_seen_subcommand_from help' -a ')sh"
      << joined(command_names()) << "'\n";
  for (const Command& command : commands()) {
    const std::string name(command.name);
    out << "complete -c allnorm -n __fish_use_subcommand -a " << name << " -d '" << escaped(command.summary, special)
        << "'\n";
    const std::string seen = "complete -c allnorm -n '__fish_seen_subcommand_from " + name;
    const Words first = words_of(command);
    if (!first.empty()) out << seen << "; and test (count (commandline -opc)) -eq 2' -a '" << joined(first) << "'\n";
    for (const OptionWords& option : options_of(command))
      out << seen << "' -l " << option.name.substr(2) << in_fish(option) << " -d '" << escaped(option.help, special)
          << "'\n";
  }
}

// ---- the command ----------------------------------------------------------------------------------------------------

struct Shell {
  std::string_view name;
  void (*print)(std::ostream&);
};
constexpr Shell shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};

Words shell_names() {
  Words names;
  for (const Shell& shell : shells) names.emplace_back(shell.name);
  return names;
}

int run_completion(const Arguments& words) {
  const std::string name = words.empty() ? "" : words[0];
  for (const Shell& shell : shells) {
    if (shell.name != name) continue;
    parse_options(Arguments(words.begin() + 1, words.end()), {});
    shell.print(std::cout);
    return exit_success;
  }
  const std::string known = listed(shell_names());
  expect(!name.empty(), Code::invalid_argument, "shell is missing, must be one of " + known);
  fail(Code::invalid_argument, "shell is '" + name + "', must be one of " + known +
                                   did_you_mean(name, shells, [](const Shell& shell) { return shell.name; }));
}

void help_completion(std::ostream& out) {
  out << "allnorm completion SHELL\n\n";
  print_text(out,
             "Prints the script by which bash, zsh or fish completes commands, layers, options, their values and the "
             "attributes of layers. An installation has it where the shell looks for it.");
  print_examples(out, {"eval \"$(allnorm completion bash)\"", "eval \"$(allnorm completion zsh)\"",
                       "allnorm completion fish | source"});
}

}  // namespace

const Command completion_command{
    "completion",   "print the script by which bash, zsh or fish completes the command line",
    run_completion, help_completion,
    nullptr,        shell_names};

}  // namespace allnorm::launch
