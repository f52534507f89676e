// Ranks as threads of one process: a mailbox each.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <list>
#include <mutex>
#include <string>
#include <thread>

#include "exchange.hpp"

namespace allnorm {

namespace {

struct Letter {
  int from;
  std::uint64_t tag;
  std::shared_ptr<const Bytes> bytes;  // one copy for all receivers
};

struct Mailbox {
  std::mutex mutex;
  std::condition_variable arrived;
  std::list<Letter> letters;
  std::uint64_t arrivals = 0;  // letters so far
};

// What the ranks share.
struct Hub {
  explicit Hub(int ranks) : boxes(static_cast<std::size_t>(ranks)) {}

  std::vector<Mailbox> boxes;  // [rank]
  std::atomic<bool> aborted{false};
  std::mutex abort_mutex;
  std::string abort_reason;
};

class ThreadLinks final : public Links {
 public:
  ThreadLinks(std::shared_ptr<Hub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return static_cast<int>(hub_->boxes.size()); }
  std::string_view transport() const noexcept override { return "threads"; }

  void post(std::span<const int> to, std::uint64_t tag, std::shared_ptr<const Bytes> bytes) override {
    for (const int rank : to) {
      Mailbox& box = hub_->boxes[static_cast<std::size_t>(rank)];
      {
        const std::lock_guard lock(box.mutex);
        box.letters.push_back({rank_, tag, bytes});
        ++box.arrivals;
      }
      box.arrived.notify_one();
    }
  }

  std::shared_ptr<const Bytes> poll(int from, std::uint64_t tag) override {
    std::shared_ptr<const Bytes> bytes;
    {
      const std::lock_guard lock(own().mutex);
      auto& letters = own().letters;
      for (auto letter = letters.begin(); letter != letters.end(); ++letter)
        if (letter->from == from && letter->tag == tag) {
          bytes = std::move(letter->bytes);
          letters.erase(letter);
          break;
        }
    }
    if (bytes) return bytes;
    if (hub_->aborted.load(std::memory_order_acquire)) {
      const std::lock_guard lock(hub_->abort_mutex);
      fail(Code::aborted, hub_->abort_reason);
    }
    return nullptr;
  }

  bool flushed(std::uint64_t) override { return true; }

  // The first looks only give way to ranks that have work; then sleep until something arrives.
  void relax(int looks) override {
    if (looks < 64) {
      std::this_thread::yield();
      return;
    }
    std::unique_lock lock(own().mutex);
    if (seen_ == own().arrivals) own().arrived.wait_for(lock, std::chrono::milliseconds(1));
    seen_ = own().arrivals;
  }

  void abort(const Error& error) noexcept override {
    try {
      const std::lock_guard lock(hub_->abort_mutex);
      if (hub_->aborted.load(std::memory_order_relaxed)) return;
      hub_->abort_reason = "rank " + std::to_string(rank_) + " failed: " + error.message();
    } catch (...) {  // no memory for the reason: the flag says enough
    }
    hub_->aborted.store(true, std::memory_order_release);
  }

 private:
  Mailbox& own() noexcept { return hub_->boxes[static_cast<std::size_t>(rank_)]; }

  std::shared_ptr<Hub> hub_;
  int rank_;
  std::uint64_t seen_ = 0;  // arrivals at the last look
};

}  // namespace

std::vector<std::shared_ptr<Communicator>> threads(int ranks, const Patience& patience) {
  expect(ranks >= 1, Code::invalid_argument,
         [&] { return "ranks is " + std::to_string(ranks) + ", must be at least 1"; });
  const auto hub = std::make_shared<Hub>(ranks);
  std::vector<std::shared_ptr<Communicator>> communicators;
  for (int rank = 0; rank < ranks; ++rank)
    communicators.push_back(communicate(std::make_shared<ThreadLinks>(hub, rank), patience));
  return communicators;
}

}  // namespace allnorm
