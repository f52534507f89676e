// What this process may use of this machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace allnorm::launch {

/// The CPUs that this process may run on, in order: those that Slurm, taskset or a container left to it.
std::vector<int> usable_cpus();
/// "0-3, 8".
std::string ranges(const std::vector<int>& numbers);

/// Bytes that processes started here can still have, and of what they are the rest: "left of the container's limit".
struct Room {
  std::uint64_t bytes;
  std::string by;
};
Room memory_room();

/// The file of a program, found as a shell finds it; empty where there is none.
std::string on_path(const std::string& program);

/// What a program wrote to stdout and stderr, and how it ended.
struct Ended {
  std::string text{};
  int code = -1;         ///< 128 + signal where one ended it
  bool in_time = false;  ///< otherwise it was killed
};
Ended run_program(const std::vector<std::string>& words, double seconds);

}  // namespace allnorm::launch
