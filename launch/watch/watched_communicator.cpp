#include "launch/watch/watched_communicator.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "launch/watch/rank_watch.hpp"
#include "src/exchange.hpp"

namespace allnorm::launch {

namespace {

// When a rank began an exchange travels among the flags of its message, which are told apart by rank: microseconds
// since 1970, until 2112.
constexpr int stamp_shift = 8;
constexpr std::uint64_t stamp_mask = ((std::uint64_t{1} << 52) - 1) << stamp_shift;
static_assert((stamp_mask & (flag_nonfinite | flag_stop | flag_weights_changed | flag_declined | flag_on_cpu)) == 0);

std::uint64_t stamp_now() { return static_cast<std::uint64_t>(wall_clock() * 1e6) << stamp_shift & stamp_mask; }

class WatchedExchange final : public Pending::Impl {
 public:
  WatchedExchange(Pending inner, RankWatch::Exchange told, std::shared_ptr<Communicator> group, RankWatch& watch)
      : inner_(std::move(inner)), told_of_(std::move(told)), group_(std::move(group)), watch_(watch) {}
  ~WatchedExchange() override {
    if (!told_) watch_.break_exchange(told_of_);
  }
  WatchedExchange(const WatchedExchange&) = delete;
  WatchedExchange& operator=(const WatchedExchange&) = delete;

  bool poll() override { return done_ || inner_.poll(); }
  // Only who waits for the end relaxes: the wait is left to the transport.
  void relax() override {
    result_ = inner_.wait();
    done_ = true;
  }
  Message take() override {
    if (!done_) result_ = inner_.wait();
    std::vector<std::uint64_t> arrivals;
    for (std::uint64_t& flags : result_.rank_flags) {
      arrivals.push_back((flags & stamp_mask) >> stamp_shift);
      flags &= ~stamp_mask;
    }
    result_.flags &= ~stamp_mask;
    if (std::find(arrivals.begin(), arrivals.end(), 0) != arrivals.end()) arrivals.clear();  // who is not watched
    watch_.end_exchange(told_of_, arrivals, *group_);
    told_ = true;
    return std::move(result_);
  }

 private:
  Pending inner_;
  RankWatch::Exchange told_of_;
  std::shared_ptr<Communicator> group_;
  RankWatch& watch_;
  Message result_;
  bool done_ = false, told_ = false;
};

class WatchedCommunicator final : public Communicator {
 public:
  WatchedCommunicator(std::shared_ptr<Communicator> inner, RankWatch& watch)
      : inner_(std::move(inner)), watch_(watch) {}

  int rank() const noexcept override { return inner_->rank(); }
  int size() const noexcept override { return inner_->size(); }
  std::string name_of(int rank) const override { return inner_->name_of(rank); }
  std::string_view transport() const noexcept override { return inner_->transport(); }
  std::size_t room(std::size_t count, const Queue& queue) const override { return inner_->room(count, queue); }
  Reporter reporter(const Queue& queue) override { return inner_->reporter(queue); }
  void check() override { inner_->check(); }
  void decline(const Error& error) noexcept override { inner_->decline(error); }
  void abort(const Error& error) noexcept override { inner_->abort(error); }
  Traffic traffic() const noexcept override { return inner_->traffic(); }

  Pending start_exchange(Message message, Queue& queue) override {
    message.flags |= stamp_now() | more_flags_;
    RankWatch::Exchange told = watch_.begin_exchange(&message.header, message.payload.size());
    try {
      Pending begun = inner_->start_exchange(std::move(message), queue);
      return Pending(std::make_unique<WatchedExchange>(std::move(begun), told, inner_, watch_));
    } catch (...) {
      watch_.break_exchange(told);
      throw;
    }
  }

  // On the CPU as a message, so that it is seen when the ranks have begun. What a GPU does the host does not see: the
  // time is that of the call, and the head is in the GPU's memory.
  Gathered gather(const Record& record, Queue& queue) override {
    if (queue.device().kind == DeviceKind::cpu) {
      more_flags_ = flag_on_cpu;
      const ClearFlags clear{more_flags_};
      return Communicator::gather(record, queue);
    }
    const RankWatch::Exchange told = watch_.begin_exchange(nullptr, record.count);
    try {
      const Gathered gathered = inner_->gather(record, queue);
      watch_.end_exchange(told, {}, *this);
      return gathered;
    } catch (...) {
      watch_.break_exchange(told);
      throw;
    }
  }

  std::shared_ptr<Communicator> split(std::int64_t color, Queue& queue) override {
    return watched(inner_->split(color, queue), watch_);
  }

 private:
  struct ClearFlags {
    std::uint64_t& flags;
    ~ClearFlags() { flags = 0; }
  };
  std::shared_ptr<Communicator> inner_;
  RankWatch& watch_;
  std::uint64_t more_flags_ = 0;
};

}  // namespace

std::shared_ptr<Communicator> watched(std::shared_ptr<Communicator> group, RankWatch& watch) {
  return std::make_shared<WatchedCommunicator>(std::move(group), watch);
}

}  // namespace allnorm::launch
