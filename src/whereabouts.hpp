// Where the ranks are: what this one last heard of each, and how one that has waited too long finds out who is missing.
//
// That a message is not there says little: its sender may itself wait for a rank that hangs. So a rank whose patience
// ends asks the ranks that it waits for, and those that they name, where they are. Who waits in an exchange answers.
// Who was stopped, hangs, has left or is still at other work does not: that one is missing.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "allnorm/late.hpp"
#include "allnorm/message.hpp"

namespace allnorm {

class Links;

/// The context of links that questions and answers travel under; no communicator has it.
constexpr std::uint64_t question_context = 1;

/// "rank 2 is missing", "rank 1, rank 2 and rank 3 are missing".
std::string are_missing(const std::vector<std::string>& names);

/// A call, as errors name it.
struct Place {
  std::array<char, Header::name_size> name{};
  std::uint64_t direction = 0, call = 0;

  Place() = default;
  explicit Place(const Header& header) noexcept;
  Header header() const;
  std::string text() const;
};

/// Where a rank waits, as it tells others.
struct Waiting {
  Place place{};
  double seconds = 0;
  std::array<char, 64> host{};  // 0-terminated, cut to fit
  std::int64_t pid = 0;

  Waiting() = default;
  /// In this process.
  Waiting(const Header& header, double waited) noexcept;
};

/// What a rank knows of where all are that its links join, and shows of itself; shared by all communicators over them.
/// Ranks are numbered as by the links. For the rank's thread, but for overdue().
class Whereabouts {
 public:
  using Ranks = std::vector<int>;

  /// A message with this header has come from `rank`.
  void heard_of(int rank, const Header& header) {
    const auto at = static_cast<std::size_t>(rank);
    if (at >= heard_.size()) heard_.resize(at + 1);
    heard_[at] = Place(header);
  }
  /// Answers whoever has asked: this rank has waited at `at` for some seconds, for `waits_for()`. Looks for questions
  /// every 20 ms or so.
  void answer(Links& links, const Header& at, double waited, const std::function<Ranks()>& waits_for);
  /// "; rank 2 was last heard of at bn, call 3, forward"; empty where nothing was heard.
  std::string last_heard_of(const Links& links, int rank) const;

  /// An exchange whose patience ends at this time begins; it is over.
  void begin_exchange(double patience_ends) noexcept {
    if (exchanges_++ == 0) patience_ends_.store(patience_ends, std::memory_order_relaxed);
  }
  void end_exchange() noexcept {
    if (--exchanges_ == 0) patience_ends_.store(never, std::memory_order_relaxed);
  }
  /// When the patience of the exchange that this rank is in ends, far away where it is in none. For any thread.
  double patience_ends() const noexcept { return patience_ends_.load(std::memory_order_relaxed); }

 private:
  friend class Inquiry;
  struct Answer {
    std::uint64_t number = 0;  // of the question
    Waiting waiting{};
    Ranks waits_for{};
  };
  void take_answers(Links& links, int from);

  static constexpr double never = std::numeric_limits<double>::infinity();
  std::vector<Place> heard_;  // [rank]; without a name where nothing was heard
  std::map<int, Answer> answers_;
  std::uint64_t questions_ = 0;  // asked so far
  double next_look_ = 0;         // for questions, in seconds
  int exchanges_ = 0;            // under way
  std::atomic<double> patience_ends_{never};
};

/// The questions of one exchange that takes too long.
class Inquiry {
 public:
  /// `others`: who is asked too, though nobody may wait for them.
  Inquiry(Links& links, std::vector<int> others);
  /// Takes the answers that are there, and asks whom it has not asked yet: of `waits_for`, for whom this rank waits,
  /// and of those for whom they wait. Without blocking.
  void look(const std::vector<int>& waits_for);
  /// True when everyone has answered or had the time to.
  bool over() const;
  /// "rank 2 is missing, not done after 2 s", and what else is known. `so_far`: the words behind the comma.
  std::string findings(const std::vector<int>& waits_for, const std::string& so_far) const;
  /// The same of each rank that was asked, and of this one.
  LateReport report(const std::vector<int>& waits_for, const Waiting& own, std::string line) const;

 private:
  const Whereabouts::Answer* answer_of(int rank) const;
  /// Those of `waits_for`, and whom these wait for, as far as is known.
  std::vector<int> reached(const std::vector<int>& waits_for) const;

  Links& links_;
  std::vector<int> others_;
  std::uint64_t number_;         // of its questions
  std::map<int, double> asked_;  // when, in seconds
};

}  // namespace allnorm
