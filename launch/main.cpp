// The program: finds the command.
#include <iostream>
#include <string>

#include "allnorm/error.hpp"
#include "build_config.hpp"
#include "launch/command.hpp"
#include "launch/guard.hpp"
#include "launch/help.hpp"
#include "launch/ranks.hpp"
#include "src/nearest.hpp"

namespace {

using namespace allnorm;
using namespace allnorm::launch;

void print_version() {
  std::cout << "allnorm " << build::version << " (commit " << build::commit << ", " << build::compiler << ", "
            << build::type;
  for (const build::Part& part : build::parts) std::cout << ", " << part.name << (part.in ? " on" : " off");
  std::cout << ")\n";
}

int run(const Arguments& words) {
  std::string known;
  for (const Command& command : commands()) known += (known.empty() ? "" : ", ") + std::string(command.name);
  expect(!words.empty(), Code::invalid_argument, [&] { return "command is missing, must be one of " + known; });
  if (words[0] == "help" && words.size() > 1) {  // help COMMAND [LAYER] is COMMAND [LAYER] --help
    Arguments asked(words.begin() + 1, words.end());
    if (!asks_for_help({asked[0]})) {
      asked.push_back("--help");
      return run(asked);
    }
  }
  if (words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    print_program_help(std::cout);
    return exit_success;
  }
  if (words[0] == "--version" || words[0] == "-V") {
    print_version();
    return exit_success;
  }
  for (const Command& command : commands()) {
    if (command.name != words[0]) continue;
    const Arguments rest(words.begin() + 1, words.end());
    const bool of_layer = command.name == "apply" && !rest.empty() && !asks_for_help({rest[0]});  // apply LAYER --help
    if (of_layer || !asks_for_help(rest)) return command.run(rest);
    command.help(std::cout);
    return exit_success;
  }
  fail(Code::invalid_argument, "command is '" + words[0] + "', must be one of " + known +
                                   did_you_mean(words[0], commands(), [](const Command& one) { return one.name; }));
}

}  // namespace

int main(int argc, char** argv) { return guard(argc, argv, run); }
