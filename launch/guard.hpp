// What every program does around its work.
#pragma once

#include "launch/command.hpp"

namespace allnorm::launch {

/// Runs `work` with the words after the program's name; every error becomes one line and an exit code.
int guard(int argc, char** argv, int (*work)(const Arguments&)) noexcept;

}  // namespace allnorm::launch
