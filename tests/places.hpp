// Where things of the project are: one file is compiled for one checkout, all others for every one.
#pragma once

#include <string>

namespace allnorm::test {

/// A file or folder of the project, by its path there.
std::string of_project(const std::string& path);

/// The program: where the environment's ALLNORM_PROGRAM has it (tests may run on another machine), or where it is
/// built; empty where it is not.
std::string program();

/// What a file has; nothing where there is none.
std::string content_of(const std::string& path);

}  // namespace allnorm::test
