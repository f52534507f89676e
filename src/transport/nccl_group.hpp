// A group of NCCL ranks as this rank holds it: the ncclComm_t, who may use it when, and its end.
#pragma once

#include <nccl.h>

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "allnorm/nccl.hpp"
#include "src/cuda/watcher.hpp"
#include "src/runtime/cuda/queue.hpp"
#include "src/transport/deadline.hpp"
#include "src/transport/rendezvous.hpp"

namespace allnorm {

static_assert(NCCL_VERSION_CODE >= NCCL_VERSION(2, 14, 3),
              "NCCL must be 2.14.3 or later: communicators that do not block");

/// Throws transport, "TRIED failed: NCCL's text", unless `result` is success. `comm` may be null; `misuse` follows
/// where NCCL calls it an invalid usage.
void expect_nccl(ncclResult_t result, ncclComm_t comm, const std::string& tried, const char* misuse = "");

/// Who tells this rank that another one failed, and is told when this one does. Either may be null.
struct SideChannels {
  std::shared_ptr<Gathering> gathering{};
  std::shared_ptr<Communicator> bootstrap{};
};

/// How errors call the ranks of a group, [rank].
using RankNames = std::vector<std::string>;
/// "rank 0" to the last.
RankNames numbered(int ranks);

/// Exchanges that the host waits for, of a group and of all groups split from it, oldest first. One at a time is under
/// way: so all ranks enqueue their parts in one order, whichever result they ask for first.
class HostExchange;
using HostExchanges = std::list<std::shared_ptr<HostExchange>>;

/// Shared by the communicator and its pending exchanges; watched from its making to its end.
class NcclGroup final : public cuda::Watched {
 public:
  /// Takes `comm`, connected; an own one is destroyed at the end. Without `names` the ranks are numbered. `number`:
  /// this rank's among all, where it has another one in the group. `pending`: the parent's, of a group that was split.
  NcclGroup(ncclComm_t comm, bool own, Queue& queue, const Patience& patience, SideChannels channels,
            RankNames names = {}, std::optional<int> number = {},
            std::shared_ptr<HostExchanges> pending = std::make_shared<HostExchanges>());
  ~NcclGroup() override;
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  int rank() const noexcept { return rank_; }
  int number() const noexcept { return number_; }
  int size() const noexcept { return size_; }
  const RankNames& names() const noexcept { return names_; }
  const std::string& own_name() const noexcept { return names_[static_cast<std::size_t>(rank_)]; }
  bool gathers() const noexcept { return size_ <= patience_.gather_limit; }
  const Patience& patience() const noexcept { return patience_; }
  const SideChannels& channels() const noexcept { return channels_; }
  cuda::Reports& reports() noexcept { return reports_; }
  const cuda::Failure& failure() const noexcept { return failure_; }

  /// Throws unless the queue is on the group's GPU and the group still lives.
  void expect_usable(const Queue& queue) const;
  /// Enqueues what `call(comm)` returns the result of. Does not wait for the GPU; in the first calls NCCL may wait for
  /// the other ranks' hosts, to connect.
  template <class Call>
  void enqueue(const char* tried, const Call& call) {
    const std::lock_guard lock(use_);
    failure_.rethrow();
    begin_call();
    const ncclResult_t result = call(comm_);
    calling_ = false;
    settle(result, tried);
  }
  /// This rank failed: tells whom it can, and ends the group.
  void abort(const std::string& why) noexcept;
  /// Ends the group with this error: what is enqueued is aborted, every later call throws.
  void end(Code code, const std::string& why) noexcept;
  /// At a deadline: this is told, once, and the failure of all that follows.
  void give_up(const std::string& line);
  void look() noexcept override;

  const std::shared_ptr<HostExchanges>& pending() const noexcept { return pending_; }
  std::uint64_t host_exchanges = 0;  // begun so far

 private:
  void begin_call();
  void settle(ncclResult_t result, const char* tried);
  void fail_with(ncclResult_t result, const std::string& tried);
  /// Nobody knows who of them waits too: where one of the first two is late the other one tells people.
  bool speaks() const noexcept { return rank_ < 2; }
  void kill() noexcept;

  ncclComm_t comm_;
  const bool own_;
  int rank_ = 0, size_ = 1, number_ = 0, device_ = 0;
  Patience patience_;
  SideChannels channels_;
  RankNames names_;
  std::shared_ptr<HostExchanges> pending_;
  Buffer<std::uint64_t> counts_;  // (2) exchanges begun and done, kernels advance them
  cuda::Reports reports_;
  cuda::Failure failure_;
  std::mutex use_;                    // one thread uses comm_ at a time
  std::atomic<bool> calling_{false};  // a thread is inside NCCL,
  std::atomic<double> call_ends_{0};  // and should not be there any more after this
  std::atomic<bool> dead_{false};     // comm_ was aborted and is gone
  bool used_ = false;
  int looks_while_calling_ = 0;  // the watcher's, since it knows that the group is over
  std::shared_ptr<cuda::Watcher> watcher_;
};

struct AbortComm {
  void operator()(ncclComm_t comm) const noexcept { ncclCommAbort(comm); }
};
/// Aborted unless released.
using OwnComm = std::unique_ptr<std::remove_pointer_t<ncclComm_t>, AbortComm>;

/// Connects a new communicator, collective over its ranks, on the queue's GPU; errors call this rank `name`. Throws
/// timeout, transport.
OwnComm connect_nccl(const NcclId& id, int rank, int size, const std::string& name, const Queue& queue,
                     const Patience& patience);

/// The message of all ranks, summed: see Communicator::start_exchange.
Pending start_host_exchange(const std::shared_ptr<NcclGroup>& group, Message message, Queue& queue);
/// Waits for all exchanges of the group's list. Their errors stay theirs.
void finish_host_exchanges(NcclGroup& group);

}  // namespace allnorm
