// Ranks as threads of one process: a mailbox each, and between GPUs what device_threads.hpp has.
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "src/transport/pause.hpp"
#include "src/transport/shared_memory.hpp"
#include "src/transport/threads.hpp"

namespace allnorm {

namespace {

// The letters of one rank. Nobody locks anything that others need: a rank that hangs, wherever that is, keeps no other
// one from its own letters. So those who post push onto a stack, and the owner takes it whole.
class Mailbox {
 public:
  struct Letter {
    int from;
    std::uint64_t tag;
    std::shared_ptr<const Bytes> bytes;  // one copy for all receivers
    Letter* next = nullptr;              // below it on the stack; behind it when taken
  };

  Mailbox() = default;
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;
  ~Mailbox() {
    take();
    while (first_ != nullptr) delete std::exchange(first_, first_->next);
  }

  void post(std::unique_ptr<Letter> made) noexcept {
    Letter* const letter = made.release();
    letter->next = top_.load(std::memory_order_relaxed);
    while (!top_.compare_exchange_weak(letter->next, letter)) {
    }
  }
  // One that has not quite begun to sleep is not woken: it sleeps a moment only.
  void wake() noexcept {
    if (sleeps_) posted_.notify_one();
  }

  // The owner's: the first letter of that rank and tag, if there is one.
  std::shared_ptr<const Bytes> find(int from, std::uint64_t tag) noexcept {
    take();
    for (Letter** at = &first_; *at != nullptr; at = &(*at)->next) {
      if ((*at)->from != from || (*at)->tag != tag) continue;
      const std::unique_ptr<Letter> letter(*at);
      *at = letter->next;
      if (end_ == &letter->next) end_ = at;
      return std::move(letter->bytes);
    }
    return nullptr;
  }
  // The owner's: returns when something is posted, or after that time.
  void sleep(Pause::Step most) {
    std::unique_lock lock(mutex_);
    sleeps_ = true;
    if (top_.load() == nullptr) posted_.wait_for(lock, most);
    sleeps_ = false;
  }

 private:
  // The stack, turned over, behind what was taken before. It needs no memory: no letter is lost where there is none.
  void take() noexcept {
    if (top_.load(std::memory_order_relaxed) == nullptr) return;
    Letter *stack = top_.exchange(nullptr), *chain = nullptr;
    Letter* const last = stack;
    while (stack != nullptr) chain = std::exchange(stack, std::exchange(stack->next, chain));
    *end_ = chain;
    end_ = &last->next;
  }

  std::atomic<Letter*> top_{nullptr};  // the last letter that was posted
  std::atomic<bool> sleeps_{false};
  std::condition_variable posted_;
  std::mutex mutex_;                           // the owner's own, for the sake of posted_
  Letter *first_ = nullptr, **end_ = &first_;  // taken, in the order in which they were posted
};

// What the ranks share.
struct Hub {
  explicit Hub(int ranks)
      : boxes(static_cast<std::size_t>(ranks)),
        left(boxes.size()),
        memory(ranks > 1 ? zeros(Board::bytes_for(boxes.size())) : nullptr),
        crowded(are_crowded(ranks, own_cores(), cpu_quota())) {}

  std::vector<Mailbox> boxes;           // [rank]
  std::vector<std::atomic<bool>> left;  // [rank] it has said goodbye
  std::shared_ptr<std::byte> memory;    // of the ranks' board
  const bool crowded;
  std::atomic<bool> aborted{false};
  std::mutex mutex;  // of what follows
  std::string abort_reason;
  // Of the groups that exchange between GPUs, by context and first member: groups of one context are disjoint.
  std::map<std::pair<std::uint64_t, int>, std::weak_ptr<DeviceHub>> devices;
};

class ThreadLinks final : public Links {
 public:
  ThreadLinks(std::shared_ptr<Hub> hub, int rank)
      : hub_(std::move(hub)), rank_(rank), board_(hub_->memory, hub_->boxes.size(), static_cast<std::size_t>(rank)) {}
  ThreadLinks(const ThreadLinks&) = delete;
  ThreadLinks& operator=(const ThreadLinks&) = delete;
  ~ThreadLinks() override { hub_->left[static_cast<std::size_t>(rank_)].store(true, std::memory_order_release); }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return static_cast<int>(hub_->boxes.size()); }
  std::string_view transport() const noexcept override { return "threads"; }

  void post(std::span<const int> to, std::uint64_t tag, std::shared_ptr<const Bytes> bytes) override {
    std::vector<std::unique_ptr<Mailbox::Letter>> letters;  // all of them before the first is posted, or none is
    for (std::size_t i = 0; i < to.size(); ++i)
      letters.push_back(std::make_unique<Mailbox::Letter>(Mailbox::Letter{rank_, tag, bytes}));
    for (std::size_t i = 0; i < to.size(); ++i) box(to[i]).post(std::move(letters[i]));
    for (const int rank : to) box(rank).wake();  // who wakes may take this core: all letters are there by then
  }

  std::shared_ptr<const Bytes> poll(int from, std::uint64_t tag) override {
    // Asked before the look: what a rank sent before it failed is still read.
    const bool aborted = hub_->aborted.load(std::memory_order_acquire);
    auto bytes = own().find(from, tag);
    if (!bytes && aborted) {
      const std::lock_guard lock(hub_->mutex);
      fail(Code::aborted, hub_->abort_reason);
    }
    return bytes;
  }

  bool shares_memory(std::span<const int>) const override { return static_cast<bool>(board_); }
  bool put(std::span<const int> to, std::uint64_t tag, Parts parts) override {
    if (!board_.put(tag, parts, to.size() + 1)) return false;
    for (const int rank : to) box(rank).wake();
    return true;
  }
  std::span<const std::byte> find(int from, std::uint64_t tag) override {
    return board_.find(static_cast<std::size_t>(from), tag);
  }
  void let_go(int from, const std::byte* message) noexcept override {
    board_.let_go(static_cast<std::size_t>(from), message);
  }

  std::vector<int> unsent(std::uint64_t) override { return {}; }
  bool has_left(int rank) override {
    return hub_->left[static_cast<std::size_t>(rank)].load(std::memory_order_acquire);
  }

  bool crowded() const noexcept override { return hub_->crowded; }
  void sleep(Pause::Step most) override { own().sleep(most); }

  void abort(const Error& error) noexcept override {
    try {
      std::vector<std::shared_ptr<DeviceHub>> ended;  // let go of without the lock
      const std::lock_guard lock(hub_->mutex);
      if (hub_->aborted.load(std::memory_order_relaxed)) return;
      hub_->abort_reason = name_of(rank_) + " failed: " + error.message();
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
    std::vector<std::string> names;
    for (const int member : members) names.push_back(name_of(member));
    devices = make_device_hub(std::move(names), later, members);
    if (!hub_->abort_reason.empty()) devices->abort(hub_->abort_reason);
    known = devices;
    return devices;
  }

 private:
  Mailbox& box(int rank) noexcept { return hub_->boxes[static_cast<std::size_t>(rank)]; }
  Mailbox& own() noexcept { return box(rank_); }

  std::shared_ptr<Hub> hub_;
  int rank_;
  Board board_;
};

}  // namespace

std::vector<std::shared_ptr<Links>> thread_links(int ranks) {
  expect(ranks >= 1, Code::invalid_argument,
         [&] { return "ranks is " + std::to_string(ranks) + ", must be at least 1"; });
  const auto hub = std::make_shared<Hub>(ranks);
  std::vector<std::shared_ptr<Links>> links;
  for (int rank = 0; rank < ranks; ++rank) links.push_back(std::make_shared<ThreadLinks>(hub, rank));
  return links;
}

std::vector<std::shared_ptr<Communicator>> threads(int ranks, const Patience& patience) {
  std::vector<std::shared_ptr<Communicator>> communicators;
  for (auto& links : thread_links(ranks)) communicators.push_back(communicate(std::move(links), patience));
  return communicators;
}

}  // namespace allnorm
