// The command `allnorm train`.
#pragma once

#include "launch/command.hpp"

namespace allnorm::launch::train {

/// Runs with the words after the command's name; returns the exit code. May throw Error.
int run_train(const Arguments& arguments);

}  // namespace allnorm::launch::train
