// What `allnorm verify` found, as a table and as JSON.
#pragma once

#include <chrono>
#include <iosfwd>
#include <string>
#include <vector>

#include "launch/verify/sweep.hpp"

namespace allnorm::launch::verify {

/// A device or transport that this machine or this way to start cannot run.
struct NotRun {
  std::string what, reason;
};

class Report {
 public:
  Report(const std::vector<const Row*>& rows, std::vector<NotRun> not_run);

  /// Adds a sweep over the same rows.
  void add(const std::vector<Outcome>& outcomes);
  bool holds() const;
  /// A line per layer: runs, the largest error and where; then what failed, and what was not run.
  void print(std::ostream& out) const;
  /// The same as one object.
  std::string json() const;

 private:
  double seconds() const;

  std::vector<Outcome> outcomes_;
  std::vector<NotRun> not_run_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace allnorm::launch::verify
