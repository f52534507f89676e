// Ranks as threads of one process: a mailbox each, and between GPUs what device_threads.hpp has.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "src/exchange.hpp"

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
  std::mutex mutex;  // of what follows
  std::string abort_reason;
  // Of the groups that exchange between GPUs, by context and first member: groups of one context are disjoint.
  std::map<std::pair<std::uint64_t, int>, std::weak_ptr<DeviceHub>> devices;
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
    // Asked before the look: what a rank sent before it failed is still read.
    const bool aborted = hub_->aborted.load(std::memory_order_acquire);
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
    if (aborted) {
      const std::lock_guard lock(hub_->mutex);
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
      std::vector<std::shared_ptr<DeviceHub>> ended;  // let go of without the lock
      const std::lock_guard lock(hub_->mutex);
      if (hub_->aborted.load(std::memory_order_relaxed)) return;
      hub_->abort_reason = "rank " + std::to_string(rank_) + " failed: " + error.message();
      for (const auto& [group, weak] : hub_->devices)
        if (ended.push_back(weak.lock()); ended.back()) ended.back()->abort(hub_->abort_reason);
    } catch (...) {  // no memory for the reason: the flag says enough
    }
    hub_->aborted.store(true, std::memory_order_release);
  }

  std::shared_ptr<DeviceHub> device_hub(const std::vector<int>& members, std::uint64_t context,
                                        const Patience& patience) override {
    if (members.size() == 1) return nullptr;
    const std::lock_guard lock(hub_->mutex);
    std::weak_ptr<DeviceHub>& known = hub_->devices[{context, members.front()}];
    std::shared_ptr<DeviceHub> devices = known.lock();
    if (devices) return devices;
    Patience later = patience;
    later.first_timeout = patience.timeout;  // all ranks have made an exchange through the host
    devices = make_device_hub(static_cast<int>(members.size()), later);
    if (!hub_->abort_reason.empty()) devices->abort(hub_->abort_reason);
    known = devices;
    return devices;
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
