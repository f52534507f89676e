// What every program does around its work.
#include "launch/guard.hpp"

#include <csignal>
#include <exception>
#include <iostream>

#include "allnorm/error.hpp"
#include "launch/ranks.hpp"

namespace allnorm::launch {

int guard(int argc, char** argv, int (*work)(const Arguments&)) noexcept {
  std::signal(SIGXFSZ, SIG_IGN);  // a file that reaches the limit is an error with a line, as a full disk is
  try {
    const int code = work(Arguments(argv + (argc > 0 ? 1 : 0), argv + argc));
    std::cout.flush();
    expect(code != exit_success || std::cout.good(), Code::device, "standard output cannot be written");
    return code;
  } catch (const std::exception& error) {
    return report(error);
  }
}

}  // namespace allnorm::launch
