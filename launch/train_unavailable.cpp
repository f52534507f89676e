// `allnorm train` of a build without libtorch: says what to install.
#include <iostream>
#include <string>

#include "allnorm/error.hpp"
#include "launch/command.hpp"
#include "launch/help.hpp"

namespace allnorm::launch {

namespace {

constexpr const char* reason =
    "train is not in this build: libtorch was not found; install libtorch-dev (Debian, Ubuntu) or pip's torch, and "
    "configure again";

int run_train(const Arguments&) { fail(Code::unsupported, reason); }

void help(std::ostream& out) {
  out << "allnorm train [options]\n\n";
  print_text(out, std::string(reason) + ".");
  print_examples(out, {"allnorm info"});
}

}  // namespace

const Command train_command{"train", "train a small CNN with one or several normalizations (not in this build)",
                            run_train, help};

}  // namespace allnorm::launch
