// Looks after exchanges that no host thread waits for: the thread that does so, and what kernels and it have found.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "allnorm/communicator.hpp"
#include "src/runtime/cuda/memory.hpp"

namespace allnorm::cuda {

/// What the watcher looks at.
class Watched {
 public:
  virtual ~Watched() = default;
  /// Called about every 20 ms. Never blocks for long: the others wait.
  virtual void look() noexcept = 0;
};

/// One thread for everything that is watched in the process; it lives as long as someone holds the watcher. Its calls
/// of CUDA do not disturb streams that are being captured.
class Watcher {
 public:
  static std::shared_ptr<Watcher> of_process();
  Watcher();
  ~Watcher();
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

  void add(Watched& watched);
  /// Returns when no look at it is under way. Not to be called from look().
  void remove(Watched& watched) noexcept;

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable ends_;
  bool end_ = false;
  std::vector<Watched*> all_;
  std::thread thread_;
};

/// The first error of something that cannot go on after it.
class Failure {
 public:
  void set(Code code, const std::string& message) noexcept;
  bool is_set() const noexcept;
  /// Throws it, every time.
  void rethrow() const;

 private:
  mutable std::mutex mutex_;
  std::optional<Error> error_;
};

/// Where the kernels of one rank report, and what the host reads there.
class Reports {
 public:
  /// `counts`: (2) on the device, zero; null: in memory shared with the host, for ranks whose device is not known yet.
  Reports(int device, std::uint64_t* counts);

  Reporter reporter() const noexcept;
  /// What is wrong when exchanges have been under way for longer than `patience` allows; empty while all is well. Warns
  /// before, and reports then. The watcher's, regularly. `number`: whose reports they are, among all ranks; `speaks`:
  /// it is to tell people; `who`: what is known of the missing.
  std::string late(const Patience& patience, int number, bool speaks,
                   const std::string& who = "a rank is missing or late");
  /// Throws what kernels have found since the last call: mismatch, invalid_argument. `names`: how errors call the
  /// group's ranks.
  void check(const std::vector<std::string>& names);

 private:
  ExchangeReport& report() const noexcept { return *static_cast<ExchangeReport*>(block_.host()); }

  PinnedBlock block_;  // an ExchangeReport, then 2 counts
  std::uint64_t* counts_;
  std::uint64_t started_ = 0, finished_ = 0;  // at the watcher's last look
  double since_ = 0;                          // when they were first seen, in seconds
  bool warned_ = false;
};

}  // namespace allnorm::cuda
