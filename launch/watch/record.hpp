// The record that a rank leaves, as it is written and read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace allnorm::launch {

constexpr int record_format = 1;

/// How a rank ended; anything else is what ended it.
inline constexpr const char *how_failed = "failed", *how_finished = "finished";

/// Whose failure ended a rank: its own, a disagreement, a rank that is late, or another rank's failure.
inline constexpr const char *kind_own = "own", *kind_mismatch = "mismatch", *kind_late = "late", *kind_peer = "peer";

/// What diagnosis needs of it.
struct RankRecord {
  int rank = 0, ranks = 1;
  std::string host{};
  std::int64_t pid = 0;
  double started = 0, written = 0;    ///< seconds since 1970
  std::string how{}, kind{}, line{};  ///< its end; kind and line where it failed
  int code = 0;
  std::string where{};         ///< "bn, call 3, forward" of its last call; empty where there was none
  bool under_way = false;      ///< that call was not done
  bool exchanging = false;     ///< ... and waited for other ranks
  double since = 0;            ///< seconds from that call's begin, or end, until the record
  std::vector<int> missing{};  ///< ranks that it knew to be missing
};

/// Throws invalid_input for a file that is no such record.
RankRecord read_record(const std::string& path);

/// The records of the folder in the order of their ranks. Throws invalid_input where there is none, or one that is no
/// record.
std::vector<RankRecord> read_records(const std::string& folder);

/// What happened, in one paragraph. `records` is not empty.
std::string diagnosis_of(std::vector<RankRecord> records);

}  // namespace allnorm::launch
