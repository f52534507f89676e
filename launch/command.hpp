// A command of the program: its name, what it says of itself, and what runs it.
#pragma once

#include <iosfwd>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <boost/program_options/options_description.hpp>

namespace allnorm::launch {

using Arguments = std::vector<std::string>;

struct Command {
  std::string_view name;
  std::string_view summary;  ///< one line for `allnorm --help`
  /// Runs with the words after the command's name; returns the exit code. May throw Error.
  int (*run)(const Arguments&);
  /// Prints the complete help of `allnorm NAME --help`.
  void (*help)(std::ostream&);
  /// Its options, for the shell's completion and the manual page; null: none but --help.
  boost::program_options::options_description (*options)() = nullptr;
  /// The words of which one follows the name; null: a file, or nothing.
  std::vector<std::string> (*words)() = nullptr;
};

/// All commands of this build, in the order of the help.
std::span<const Command> commands() noexcept;

// One per file: apply.cpp, bench/bench.cpp, diagnose.cpp, info.cpp, report/report.cpp, scale/scale.cpp,
// train_started.cpp (or train_unavailable.cpp), verify/verify.cpp.
extern const Command apply_command;
extern const Command bench_command;
extern const Command completion_command;
extern const Command diagnose_command;
extern const Command doctor_command;
extern const Command info_command;
extern const Command man_command;
extern const Command report_command;
extern const Command scale_command;
extern const Command train_command;
extern const Command verify_command;

}  // namespace allnorm::launch
