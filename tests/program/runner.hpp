// Runs the program as a child process, in a directory of its own.
#pragma once

#include <sys/types.h>

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/tensor.hpp"
#include "launch/files/npy.hpp"
#include "places.hpp"

namespace allnorm::test {

struct Outcome {
  int code = -1;  ///< exit code; 128 + signal when killed
  std::string out{}, err{};

  /// One line on stderr that starts with the program's name.
  bool one_line() const;
};

/// A temporary directory, removed at the end, and the program run in it.
class Workplace {
 public:
  Workplace();
  ~Workplace();
  Workplace(const Workplace&) = delete;
  Workplace& operator=(const Workplace&) = delete;

  std::string path(std::string_view name) const { return directory_ + "/" + std::string(name); }
  /// Values 0.25*i - 1 with a little irregularity, so that no statistic is trivial.
  void make(std::string_view name, const Shape& shape, launch::NpyType type = launch::NpyType::f64) const;
  void write(std::string_view name, const launch::NpyArray& array) const;
  void write_bytes(std::string_view name, std::string_view bytes) const;
  launch::NpyArray read(std::string_view name) const;
  std::vector<double> values(std::string_view name) const;
  std::string bytes(std::string_view name) const;
  bool exists(std::string_view name) const;
  /// Names in a subdirectory, sorted.
  std::vector<std::string> list(std::string_view name) const;

  /// `words` are split at spaces; `before` goes in front of the program (mpirun -n 2).
  Outcome run(std::string_view words, std::string_view before = {}) const;
  /// As above, with variables NAME=VALUE added to the environment.
  Outcome run_with(std::span<const std::string_view> environment, std::string_view words) const;
  Outcome run_with(std::initializer_list<std::string_view> environment, std::string_view words) const {
    return run_with(std::span(environment.begin(), environment.size()), words);
  }

  /// Another program.
  Outcome run_other(std::string_view words) const;

  /// The same in two parts, for a test that does something to the process in between.
  pid_t start(std::string_view words, std::string_view before = {}) const;
  /// `name`: of a process that runs beside others of this test.
  pid_t start_with(const std::vector<std::string>& environment, std::string_view words, std::string_view name) const;
  Outcome wait(pid_t child, std::string_view name = {}) const;

 private:
  pid_t start(const std::vector<std::string>& words, const std::vector<std::string>& environment,
              std::string_view name = {}) const;
  std::string directory_;
};

}  // namespace allnorm::test
