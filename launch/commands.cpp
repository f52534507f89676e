// The commands of this build.
#include <array>

#include "launch/command.hpp"

namespace allnorm::launch {

std::span<const Command> commands() noexcept {
  static const std::array all{train_command,  apply_command,      verify_command,   bench_command,
                              scale_command,  report_command,     diagnose_command, info_command,
                              doctor_command, completion_command, man_command};
  return all;
}

}  // namespace allnorm::launch
