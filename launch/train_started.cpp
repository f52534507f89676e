// `allnorm train`: starts the program that it is, in place of this one.
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iostream>
#include <string>
#include <system_error>
#include <vector>

#include "allnorm/error.hpp"
#include "launch/command.hpp"
#include "launch/files/input_file.hpp"

namespace allnorm::launch {

namespace {

namespace fs = std::filesystem;

/// Beside this program as in a build tree, or where an installation has it.
std::string train_program() {
  constexpr const char* name = "allnorm-train";
  std::error_code error;
  const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const fs::path& folder : {here, here / ALLNORM_LIBEXEC})
    if (fs::exists(folder / name, error)) return (folder / name).string();
  fail(Code::unsupported, std::string(name) + " is neither in " + here.string() + " nor in " +
                              (here / ALLNORM_LIBEXEC).lexically_normal().string() + ", must be there to train");
}

int start(const Arguments& arguments) {
  const std::string program = train_program();
  std::vector<char*> words{const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  std::cout.flush();
  ::execv(program.c_str(), words.data());
  fail(Code::unsupported, program + ": cannot be started: " + system_reason(errno));
}

void help(std::ostream&) { start({"--help"}); }

}  // namespace

const Command train_command{"train", "train a small CNN with one or several normalizations and compare them", start,
                            help};

}  // namespace allnorm::launch
