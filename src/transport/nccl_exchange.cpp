// Exchanges over NCCL that the host waits for: heads first, then payloads of one length.
#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "src/exchange.hpp"
#include "src/transport/nccl_group.hpp"
#include "src/wire.hpp"

namespace allnorm {

namespace {

struct EventDeleter {
  void operator()(cudaEvent_t event) const noexcept { cuda::ignore(cudaEventDestroy(event)); }
};
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventDeleter>;

Event make_event() {
  cudaEvent_t event = nullptr;
  cuda::check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  return Event(event);
}

}  // namespace

// Own head and payload | all heads | all payloads, or their sum: the same places in pinned memory and on the device.
class HostExchange {
 public:
  HostExchange(NcclGroup& group, Message message, Queue& queue)
      : group_(group),
        message_(std::move(message)),
        deadline_(group.patience(),
                  group.host_exchanges == 0 ? group.patience().first_timeout : group.patience().timeout),
        guard_device_(queue.device().index),
        stream_(cuda::stream_of(queue)),
        payload_(message_.payload.size() * sizeof(double)),
        ranks_(static_cast<std::size_t>(group.size())),
        gathers_(group.gathers() || message_.header.get(Field::moments) > 0),
        pinned_(bytes(), guard_device_),
        device_(bytes(), queue, Fill::none) {
    const cuda::DeviceGuard guard(guard_device_);
    event_ = make_event();
    const RecordHead head{message_.header, message_.flags, message_.payload.size()};
    std::memcpy(on_host(0), &head, sizeof head);
    if (payload_ > 0) std::memcpy(on_host(sizeof head), message_.payload.data(), payload_);
  }

  /// Where an exchange failed its copies may still be on their way, to and from the pinned memory. Its group has ended
  /// by then, so that the stream comes to their end, unless other work in it waits for a rank that is gone: then the
  /// memory is left to the process.
  ~HostExchange() {
    const cuda::RelaxedCapture relaxed;
    Deadline deadline(group_.patience(), group_.patience().timeout);
    for (cudaError_t state; (state = cudaEventQuery(event_.get())) == cudaErrorNotReady; deadline.relax()) {
      cuda::ignore(state);
      if (!deadline.over()) continue;
      new cuda::PinnedBlock(std::move(pinned_));  // never deleted
      return;
    }
  }
  HostExchange(const HostExchange&) = delete;
  HostExchange& operator=(const HostExchange&) = delete;

  bool done() const noexcept { return phase_ == Phase::done; }

  /// A step, where one is possible. What goes wrong ends this exchange and the group: the peers wait for this rank's
  /// part, and its stream for theirs.
  void advance() noexcept {
    try {
      step();
      return;
    } catch (const Error& error) {
      error_ = std::current_exception();
      group_.end(error.code(), error.message());
    } catch (...) {
      error_ = std::current_exception();
      group_.end(Code::transport, "out of memory");
    }
    phase_ = Phase::done;
    try {
      const cuda::DeviceGuard guard(guard_device_);
      cuda::ignore(cudaEventRecord(event_.get(), stream_));  // after whatever was enqueued
    } catch (const Error&) {  // the device is in an error state: nothing runs there any more
    }
  }
  const NcclGroup& group() const noexcept { return group_; }

  Message take() {
    if (error_) std::rethrow_exception(error_);
    expect(verdict_.empty(), Code::mismatch, verdict_);
    return std::move(message_);
  }

 private:
  enum class Phase { waiting, heads, payloads, done };

  void step() {
    const cuda::DeviceGuard guard(guard_device_);
    group_.failure().rethrow();
    if (phase_ == Phase::waiting) {
      to_device(0, sizeof(RecordHead) + payload_);
      group_.enqueue("an exchange over NCCL", [&](ncclComm_t comm) {
        return ncclAllGather(on_device(0), on_device(heads()), sizeof(RecordHead), ncclUint8, comm, stream_);
      });
      to_host(heads(), ranks_ * sizeof(RecordHead));
      phase_ = Phase::heads;
    }
    if (phase_ != Phase::done && !arrived()) {
      if (!deadline_.over()) return;
      const std::string why =
          describe(message_.header) + ": a rank is missing or late, not done after " + deadline_.text();
      group_.give_up(why);
      group_.end(Code::timeout, why);
      group_.failure().rethrow();
    }
    if (phase_ == Phase::heads) {
      compare();
      if (!verdict_.empty() || payload_ == 0) {
        phase_ = Phase::done;
        return;
      }
      group_.enqueue("an exchange over NCCL", [&](ncclComm_t comm) {
        const void* own = on_device(sizeof(RecordHead));
        return gathers_ ? ncclAllGather(own, on_device(payloads()), payload_, ncclUint8, comm, stream_)
                        : ncclAllReduce(own, on_device(payloads()), message_.payload.size(), ncclDouble, ncclSum, comm,
                                        stream_);
      });
      to_host(payloads(), summands() * payload_);
      phase_ = Phase::payloads;
    } else if (phase_ == Phase::payloads) {
      merge();
      phase_ = Phase::done;
    }
  }

  std::size_t heads() const noexcept { return sizeof(RecordHead) + payload_; }
  std::size_t payloads() const noexcept { return heads() + ranks_ * sizeof(RecordHead); }
  std::size_t summands() const noexcept { return gathers_ ? ranks_ : 1; }
  std::size_t bytes() const noexcept { return payloads() + summands() * payload_; }
  std::byte* on_host(std::size_t at) const noexcept { return static_cast<std::byte*>(pinned_.host()) + at; }
  std::byte* on_device(std::size_t at) noexcept { return device_.data() + at; }

  void to_device(std::size_t at, std::size_t size) {
    cuda::check(cudaMemcpyAsync(on_device(at), on_host(at), size, cudaMemcpyHostToDevice, stream_),
                "copying a message");
  }
  void to_host(std::size_t at, std::size_t size) {
    cuda::check(cudaMemcpyAsync(on_host(at), on_device(at), size, cudaMemcpyDeviceToHost, stream_), "copying messages");
    cuda::check(cudaEventRecord(event_.get(), stream_), "marking the end of an exchange");
  }
  bool arrived() const {
    const cudaError_t state = cudaEventQuery(event_.get());
    if (state == cudaErrorNotReady) {
      cuda::ignore(state);
      return false;
    }
    cuda::check(state, "an exchange over NCCL");
    group_.failure().rethrow();  // an aborted exchange arrives too, with anything in it
    return true;
  }

  void compare() {
    std::vector<RecordHead> all(ranks_);
    std::memcpy(all.data(), on_host(heads()), ranks_ * sizeof(RecordHead));
    message_.flags = 0;
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      if (verdict_.empty())
        verdict_ = verdict(all[0].header, group_.names()[0], all[rank].header, group_.names()[rank]);
      message_.flags |= all[rank].flags;
      if ((all[rank].flags & flag_nonfinite) != 0) message_.nonfinite |= rank_bit(static_cast<int>(rank));
      if (group_.gathers()) message_.rank_flags.push_back(all[rank].flags);
    }
  }
  void merge() {
    auto& sum = message_.payload;
    std::fill(sum.begin(), sum.end(), 0.0);
    for (std::size_t rank = 0; rank < summands(); ++rank)
      merge_payload(message_.header, sum, on_host(payloads() + rank * payload_));
  }

  NcclGroup& group_;
  Message message_;
  Deadline deadline_;
  int guard_device_;
  cudaStream_t stream_;
  std::size_t payload_;  // bytes
  std::size_t ranks_;
  bool gathers_;  // payloads: moments are merged here, beyond the limit too
  cuda::PinnedBlock pinned_;
  Buffer<std::byte> device_;
  Event event_{};
  Phase phase_ = Phase::waiting;
  std::string verdict_;
  std::exception_ptr error_;
};

namespace {

// Steps of the oldest exchange, and of the next when it is done.
void advance(HostExchanges& pending) {
  while (!pending.empty()) {
    pending.front()->advance();
    if (!pending.front()->done()) return;
    pending.pop_front();
  }
}

class NcclPending final : public Pending::Impl {
 public:
  NcclPending(std::shared_ptr<NcclGroup> group, std::shared_ptr<HostExchange> exchange)
      : group_(std::move(group)), exchange_(std::move(exchange)), pause_(group_->patience(), 0) {}

  bool poll() override {
    if (!exchange_->done()) advance(*group_->pending());
    return exchange_->done();
  }
  Message take() override { return exchange_->take(); }
  void relax() override { pause_.relax(); }

 private:
  std::shared_ptr<NcclGroup> group_;
  std::shared_ptr<HostExchange> exchange_;
  Deadline pause_;
};

}  // namespace

Pending start_host_exchange(const std::shared_ptr<NcclGroup>& group, Message message, Queue& queue) {
  expect(!cuda::is_capturing(queue), Code::unsupported,
         "an exchange that the host waits for cannot be captured in a graph");
  message.header.set(Field::ranks, static_cast<std::uint64_t>(group->size()));
  message.header.set(Field::payload, static_cast<std::uint64_t>(message.payload.size()));
  expect_sound(message.header, message.payload.size());
  auto exchange = std::make_shared<HostExchange>(*group, std::move(message), queue);
  ++group->host_exchanges;
  group->pending()->push_back(exchange);
  advance(*group->pending());
  return Pending(std::make_unique<NcclPending>(group, std::move(exchange)));
}

void finish_host_exchanges(NcclGroup& group) {
  Deadline pause(group.patience(), 0);
  HostExchanges& pending = *group.pending();
  for (advance(pending); !pending.empty(); advance(pending)) pause.relax();
}

}  // namespace allnorm
