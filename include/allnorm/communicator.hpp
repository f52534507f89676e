// Groups of ranks and the one exchange between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/device.hpp"
#include "allnorm/error.hpp"
#include "allnorm/late.hpp"
#include "allnorm/message.hpp"
#include "allnorm/record.hpp"
#include "allnorm/sync.hpp"

namespace allnorm {

/// How ranks wait for each other. The functions must not throw.
struct Patience {
  double timeout = 120;  ///< seconds until a missing rank is an Error{timeout}; below 1 up to 0.5 more, to ask who
  double first_timeout = 600;  ///< the same for the first exchange of a communicator: ranks start at different times
  int gather_limit = 32;  ///< up to this many ranks messages are gathered and merged in rank order; beyond, along a
                          ///< fixed binomial tree
  std::function<double()> now{};  ///< a clock in seconds; the steady clock when empty
  std::function<void()> relax{};  ///< what a waiting rank does between two looks; spins, yields, sleeps when empty
  /// Told once in an exchange, after 30 s or half of its deadline; and right before it throws timeout. By the thread
  /// that waits, or one of the library's where none does (nccl; threads of one GPU).
  std::function<void(const LateReport&)> warn{};
  std::function<void(const LateReport&)> report{};  ///< see warn
};

/// An exchange under way. Move-only. A Pending that is dropped before it is done leaves its group unusable.
class Pending {
 public:
  /// A transport's own part.
  class Impl {
   public:
    virtual ~Impl() = default;
    virtual bool poll() = 0;     ///< makes progress, never blocks; true when done. Throws timeout and aborted.
    virtual Message take() = 0;  ///< the result, after poll() returned true; once. Throws mismatch.
    virtual void relax() = 0;    ///< gives way to other ranks
  };

  Pending() = default;
  /// An exchange that a transport has begun.
  explicit Pending(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

  /// Makes progress without blocking; true when the result is there. MPI moves messages only inside calls: call this
  /// between blocks of other work to overlap the two.
  bool poll();
  /// Waits for every rank's message and returns them merged; once. Throws mismatch when headers differ, timeout when a
  /// rank is late (both name it), aborted when another rank failed or declined.
  Message wait();

 private:
  std::unique_ptr<Impl> impl_;
};

/// A group of ranks, each its own process or thread. All members make the same exchanges in the same order; every
/// member's messages carry the same header, or all are told which rank and field differ. Results have the same bits on
/// every rank; up to Patience::gather_limit ranks also on every transport.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const noexcept = 0;  ///< this rank's number in the group
  virtual int size() const noexcept = 0;  ///< ranks in the group
  /// How errors call a rank of this group: by its number among all ranks that the transport joins, "rank 3", and by its
  /// host where these are on several, "rank 3 (node7)".
  virtual std::string name_of(int rank) const = 0;
  /// "self", "threads", "mpi", "nccl" or "tcp".
  virtual std::string_view transport() const noexcept = 0;
  /// Sends `message` to the group and returns at once.
  virtual Pending start_exchange(Message message, Queue& queue) = 0;
  /// Bytes of room that gather() needs on this queue for records of `count` doubles; 0 where it needs none.
  virtual std::size_t room(std::size_t count, const Queue& queue) const;
  /// The exchange of a layer's records, in the order of the queue's work; one whose head says declined is the rank's
  /// decline(), and throws aborted on all. Where the transport works on the device
  /// (nccl; threads of one GPU) the host does not wait, and whoever reads the result checks the heads and tells
  /// reporter(); otherwise the host waits for the queue and for the peers, and throws as Pending::wait. The doubles of
  /// record.data may be overwritten.
  virtual Gathered gather(const Record& record, Queue& queue);
  /// Where the kernels of gather()'s users say what they found; empty where the host checks.
  virtual Reporter reporter(const Queue&) { return {}; }
  /// Throws what kernels or the watcher have found since the last look: mismatch, timeout, aborted, transport. Never
  /// blocks.
  virtual void check() {}
  /// The subgroup of all ranks that give the same color, in rank order. Collective. |color| is at most 2^53.
  virtual std::shared_ptr<Communicator> split(std::int64_t color, Queue& queue) = 0;
  /// Takes this rank's part in the next exchange only to say that it cannot: the peers' wait throws aborted with this
  /// rank and the error. Does not wait. The group is still usable afterwards.
  virtual void decline(const Error& error) noexcept = 0;
  /// Tells the peers of every group, where the transport can (threads, tcp), that this rank is gone; all their waits
  /// throw aborted.
  virtual void abort(const Error& error) noexcept = 0;
  /// Numbers of this rank's exchanges through this communicator and of the payload bytes in its messages, each counted
  /// once however many peers it goes to.
  struct Traffic {
    std::uint64_t exchanges = 0;  ///< that this rank took part in
    std::uint64_t bytes = 0;      ///< of payload that it sent
  };
  /// Since the communicator was made.
  virtual Traffic traffic() const noexcept = 0;

  /// start_exchange and wait in one.
  Message exchange(Message message, Queue& queue) { return start_exchange(std::move(message), queue).wait(); }
};

/// A group of one.
std::shared_ptr<Communicator> self();
/// `ranks` communicators for as many threads of this process, [r] for rank r. Throws invalid_argument for ranks < 1.
std::vector<std::shared_ptr<Communicator>> threads(int ranks, const Patience& patience = {});

/// The communicator of this rank's group within `world`. Collective over `world` unless sync is none or world.
std::shared_ptr<Communicator> sync_group(const std::shared_ptr<Communicator>& world, Sync sync, Queue& queue);

}  // namespace allnorm
