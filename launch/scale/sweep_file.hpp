// The file of a sweep: its config, and a row for each result as soon as that is there.
#pragma once

#include <string>
#include <vector>

#include "launch/scale/plan.hpp"

namespace allnorm::launch::scale {

/// Whether a row was measured or simulated, and not made of others: what a resumed sweep keeps.
bool is_result(const Json& row);

class SweepFile {
 public:
  /// Begins the file of plan.json with `config`, or goes on with that of plan.resume: its complete lines up to the last
  /// result stay as they are, what is behind them goes. Without either, rows are kept in memory alone. Throws
  /// invalid_input.
  SweepFile(const Plan& plan, const Json& config);
  ~SweepFile();
  SweepFile(const SweepFile&) = delete;
  SweepFile& operator=(const SweepFile&) = delete;

  /// The config, then all rows.
  const std::vector<Json>& events() const noexcept { return events_; }
  const Json& config() const noexcept { return events_.front(); }
  /// Rows that were there before.
  std::size_t kept() const noexcept { return kept_; }
  /// Written as one, and there before this returns.
  void add(const std::vector<Json>& rows);

 private:
  std::string path_;
  int descriptor_ = -1;
  std::vector<Json> events_{};
  std::size_t kept_ = 0;
};

}  // namespace allnorm::launch::scale
