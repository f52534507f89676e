// `allnorm train`: starts the program that it is, in place of this one.
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <iostream>
#include <string>
#include <vector>

#include "allnorm/error.hpp"
#include "launch/command.hpp"
#include "launch/files/input_file.hpp"
#include "launch/installed.hpp"
#include "launch/train_options.hpp"

namespace allnorm::launch {

namespace {

int start(const Arguments& arguments) {
  const std::string program = train_program();
  std::vector<char*> words{const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  std::cout.flush();
  // One that comes while that program loads waits until it takes it.
  sigset_t saves;
  ::sigemptyset(&saves);
  ::sigaddset(&saves, SIGUSR1);
  ::sigprocmask(SIG_BLOCK, &saves, nullptr);
  ::execv(program.c_str(), words.data());
  fail(Code::unsupported, program + ": cannot be started: " + system_reason(errno));
}

}  // namespace

const Command train_command{"train", "train a small CNN with one or several normalizations and compare them", start,
                            help_train, [] {
                              TrainOptions options;
                              return describe(options);
                            }};

}  // namespace allnorm::launch
