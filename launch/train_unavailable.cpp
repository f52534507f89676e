// `allnorm train` of a build without libtorch: says what to install.
#include <iostream>

#include "allnorm/error.hpp"
#include "launch/command.hpp"

namespace allnorm::launch {

namespace {

constexpr const char* reason =
    "train is not in this build: libtorch was not found; install libtorch-dev (Debian, Ubuntu) or pip's torch, and "
    "configure again";

int run_train(const Arguments&) { fail(Code::unsupported, reason); }

void help_train(std::ostream& out) { out << "allnorm train\n\n" << reason << ".\n"; }

}  // namespace

const Command train_command{"train", "train a small CNN with one or several normalizations (not in this build)",
                            run_train, help_train};

}  // namespace allnorm::launch
