#include "src/exchange.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/formulas.hpp"
#include "src/failures.hpp"
#include "src/gpu.hpp"
#include "src/record_room.hpp"
#include "src/transport/deadline.hpp"
#include "src/wire.hpp"

namespace allnorm {

bool Pending::poll() {
  expect(impl_ != nullptr, Code::invalid_argument,
         "a Pending is empty, must be of an exchange that was not waited for yet");
  return impl_->poll();
}

Message Pending::wait() {
  while (!poll()) impl_->relax();
  return std::exchange(impl_, nullptr)->take();
}

std::string verdict(const Header& first, std::string_view first_name, const Header& other, const std::string& name) {
  const std::string text = differences(first, first_name, other);
  if (text.empty()) return {};
  // "is at ..." reads on from the rank; everything else belongs to the call that all ranks are in
  return name + (text.starts_with("is at") ? " " : ": " + describe(first) + ": ") + text;
}

std::string too_many_values(const Header& call) {
  return describe(call) + ": a group has more than 2^53 values on all ranks together, must have at most that";
}

std::size_t Communicator::room(std::size_t, const Queue&) const { return 0; }

namespace {

std::size_t bytes_of(const Record& record) noexcept { return sizeof(RecordHead) + record.count * sizeof(double); }
bool is_gpu(const Queue& queue) noexcept { return queue.device().kind != DeviceKind::cpu; }

void expect_not_captured(const Communicator& group, Queue& queue) {
  expect(!is_gpu(queue) || !is_captured(queue), Code::unsupported, [&] {
    return "an exchange of records over " + std::string(group.transport()) +
           " waits on the host, it cannot be captured in a graph";
  });
}
void expect_same_weights(std::uint64_t flags) {
  expect((flags & flag_weights_changed) == 0, Code::invalid_argument,
         "conv_weight has changed within a batch of mini-batches on a rank, must be the same until the batch ends");
}

void expect_taken_part(const RecordHead& head) {
  expect((head.flags & flag_declined) == 0, Code::aborted, [&] { return std::string(head.reason.data()); });
}

struct ThroughHost {
  Gathered sums;
  std::uint64_t flags;  // of all ranks
};

// A record in memory of the host.
struct OnHost {
  RecordHead head;
  std::span<double> payload;  // where the record has it, or what it passes from a GPU
};

// Of the payload's moments, which the header counts.
bool are_moments_finite(const Header& header, std::span<const double> payload) {
  const std::size_t means = header.get(Field::moments), all = means + means * header.get(Field::co_moments);
  return std::all_of(payload.begin(), payload.begin() + static_cast<std::ptrdiff_t>(std::min(1 + all, payload.size())),
                     [means](double value) { return means == 0 || std::isfinite(value); });
}

// The record where the host reads it; from a CUDA queue it passes the memory that stage(bytes) gives. What goes wrong
// here is this rank's own: it declines the exchange.
template <class Stage>
OnHost on_host(Communicator& group, const Record& record, const Stage& stage, Queue& queue) {
  return tell_others(true, group, [&]() -> OnHost {
    std::byte* own = record.data;
    if (is_gpu(queue)) {
      expect_not_captured(group, queue);
      own = stage(bytes_of(record));
      copy_to_host(own, record.data, bytes_of(record), queue);
      queue.wait();
    }
    OnHost here{{}, {reinterpret_cast<double*>(own + sizeof(RecordHead)), record.count}};
    std::memcpy(&here.head, own, sizeof here.head);
    expect_taken_part(here.head);
    if (!are_moments_finite(here.head.header, here.payload)) here.head.flags |= flag_nonfinite;
    return here;
  });
}

// Exchanges the records by exchange(header, flags, payload), which writes what they merge to where the payload was;
// there it stays. `more_flags` are this rank's, beside the record's own.
template <class Stage, class Exchange>
ThroughHost gather_through_host(Communicator& group, const Record& record, const Stage& stage, std::uint64_t more_flags,
                                const Exchange& exchange, Queue& queue) {
  const OnHost own = on_host(group, record, stage, queue);
  const Message sum = exchange(own.head.header, own.head.flags | more_flags, own.payload);
  expect_same_weights(sum.flags);
  expect(sum.header.get(Field::moments) == 0 || own.payload[0] <= formulas::most_values, Code::invalid_input,
         [&] { return too_many_values(sum.header); });
  std::byte* to = record.data + sizeof(RecordHead);
  if (is_gpu(queue)) copy_to_device(to, own.payload.data(), own.payload.size_bytes(), queue);
  return {{nullptr, 0, 0, reinterpret_cast<const double*>(to), sum.nonfinite}, sum.flags};
}

}  // namespace

Gathered Communicator::gather(const Record& record, Queue& queue) {
  std::vector<std::byte> staged;
  const auto stage = [&staged](std::size_t bytes) {
    staged.resize(bytes);
    return staged.data();
  };
  const auto as_message = [&](const Header& header, std::uint64_t flags, std::span<double> payload) {
    Message sum = exchange({header, {payload.begin(), payload.end()}, flags, {}}, queue);
    expect(sum.payload.size() == payload.size(), Code::transport, [&] {
      return "an exchange of " + std::to_string(payload.size()) + " doubles gave " +
             std::to_string(sum.payload.size()) + ", must give as many";
    });
    std::ranges::copy(sum.payload, payload.begin());
    return sum;
  };
  return gather_through_host(*this, record, stage, 0, as_message, queue).sums;
}

void expect_sound(const Header& header, std::size_t size) {
  const std::uint64_t means = header.get(Field::moments), width = header.get(Field::co_moments);
  const bool fits =
      means == 0 || (width > 0 && means % width == 0 && means < size && (size - 1 - means) / means >= width);
  expect(fits, Code::invalid_argument, [&] {
    return "a message of " + std::to_string(size) + " doubles has moments = " + std::to_string(means) +
           " and co_moments = " + std::to_string(width) +
           ", must have at least 1 + moments (1 + co_moments) doubles, and moments a multiple of co_moments";
  });
}

std::shared_ptr<DeviceHub> Links::device_hub(const std::vector<int>&, std::uint64_t, const Patience&) {
  return nullptr;
}

namespace {

class LinkedCommunicator final : public Communicator {
 public:
  explicit LinkedCommunicator(std::shared_ptr<const Group> group) : group_(std::move(group)) {}
  LinkedCommunicator(const LinkedCommunicator&) = delete;
  LinkedCommunicator& operator=(const LinkedCommunicator&) = delete;
  ~LinkedCommunicator() override {
    group_->declined->clear();  // they hold the group
    if (hub_) hub_->leave(rank());
  }

  int rank() const noexcept override { return group_->rank; }
  int size() const noexcept override { return group_->size(); }
  std::string name_of(int rank) const override { return group_->name_of(rank); }
  std::string_view transport() const noexcept override { return group_->links->transport(); }
  Traffic traffic() const noexcept override { return traffic_; }
  void abort(const Error& error) noexcept override { group_->links->abort(error); }

  // A rank without peers makes no exchange, and its kernels may still find that weights have changed.
  Reporter reporter(const Queue& queue) override {
    if (hub_) return hub_->reporter(rank());
    if (size() > 1 || !is_gpu(queue)) return {};
    if (!lone_) lone_ = lone_reports(queue.device().index, name_of(0));
    return lone_->reporter();
  }
  void check() override {
    if (hub_) hub_->check(rank());
    if (lone_) lone_->check();
  }

  // Through the host until one exchange between GPUs is done there, from then on in their memory where the transport
  // can. So all ranks change over together, and what is wrong in a group's first call is told as on the CPU.
  Gathered gather(const Record& record, Queue& queue) override {
    if (hub_) {
      expect(is_gpu(queue), Code::invalid_argument,
             "the queue of an exchange is on cpu, must be on a GPU as in the group's earlier ones");
      count(record.count);
      return hub_->gather(rank(), record, queue);
    }
    if (in_place_ && bytes_of(record) >= worth_a_round) return gather_in_place(record, queue);
    constexpr std::uint64_t in_host_memory = std::uint64_t{1} << 62;  // as flag_on_cpu
    const bool in_place = group_->links->takes_gpu_memory() && size() > 1 && size() <= group_->patience.gather_limit;
    const std::uint64_t flags = (is_gpu(queue) ? 0 : flag_on_cpu) | (in_place ? 0 : in_host_memory);
    const auto stage = [&](std::size_t bytes) { return staging(bytes, queue); };
    const auto in_its_place = [this](const Header& header, std::uint64_t own_flags, std::span<double> payload) {
      return start(header, own_flags, payload, {}).wait();
    };
    const ThroughHost all = gather_through_host(*this, record, stage, flags, in_its_place, queue);
    if ((all.flags & flag_on_cpu) != 0) return all.sums;
    hub_ = group_->links->device_hub(group_->members, group_->context, group_->patience);
    in_place_ = (all.flags & in_host_memory) == 0;
    return all.sums;
  }

  Pending start_exchange(Message message, Queue&) override {
    const std::span<double> payload = message.payload;
    return start(message.header, message.flags, payload, std::move(message.payload));
  }

  void decline(const Error& error) noexcept override {
    if (size() == 1) return;
    try {
      if (hub_) return hub_->decline(rank(), error);  // peers wait in their streams: their kernels find it
      const std::string why = name_of(rank()) + " failed: " + error.message();
      group_->declined->add(begin({Header("declined", Direction::agreement, sequence_), 0, why, {}, true}, {}));
    } catch (...) {  // no memory to say so: the peers' deadline remains
    }
  }

  // Each rank says its color and the first context number that is free on it; all take the largest, so that no two
  // communicators that share a rank share a number.
  std::shared_ptr<Communicator> split(std::int64_t color, Queue& queue) override {
    constexpr std::int64_t most = std::int64_t{1} << 53;  // what a double holds exactly
    expect(-most <= color && color <= most, Code::invalid_argument,
           [&] { return "the color of a split is " + std::to_string(color) + ", must be from -2^53 to 2^53"; });
    Message message{Header("split", Direction::split, sequence_), {}, 0, {}};
    message.payload.assign(2 * static_cast<std::size_t>(size()), 0.0);
    message.payload[2 * static_cast<std::size_t>(rank())] = static_cast<double>(color);
    message.payload[2 * static_cast<std::size_t>(rank()) + 1] = static_cast<double>(group_->links->next_context);
    const Message all = exchange(std::move(message), queue);

    std::vector<int> members;
    double context = 0;
    for (std::size_t r = 0; r < group_->members.size(); ++r) {
      context = std::max(context, all.payload[2 * r + 1]);
      if (all.payload[2 * r] == static_cast<double>(color)) members.push_back(group_->members[r]);
    }
    group_->links->next_context = static_cast<std::uint64_t>(context) + 1;
    return communicate(group_->links, std::move(members), static_cast<std::uint64_t>(context), group_->patience);
  }

  double overdue() const { return now(group_->patience) - group_->links->whereabouts.patience_ends(); }

 private:
  void count(std::size_t doubles) noexcept {
    ++traffic_.exchanges;
    traffic_.bytes += doubles * sizeof(double);
  }

  // Heads through the host, where what is wrong is told; then the records from memory to memory, by a transport that
  // takes that of GPUs: worth a second round where there is much to copy. (The bound is reasoned: what a link of 25
  // GB/s copies there and back in the time of a message. It is not measured.)
  static constexpr std::size_t worth_a_round = 64 << 10;  // bytes
  Gathered gather_in_place(const Record& record, Queue& queue) {
    const auto on_gpu = current_gpu(queue);           // libraries that take a pointer look at the current device too
    RecordHead head = tell_others(true, *this, [&] {  // what can be wrong on this rank alone
      expect_not_captured(*this, queue);
      const RecordHead own = room_.put(record, rank(), size(), queue);
      expect_taken_part(own);
      return own;
    });
    head.header.set(Field::ranks, static_cast<std::uint64_t>(size()));
    head.header.set(Field::payload, static_cast<std::uint64_t>(record.count));
    count(record.count);
    expect_same_weights(Pending(begin({head.header, head.flags}, {})).wait().flags);
    try {
      Pending(begin_records(group_, head.header, room_.records(), room_.stride(), bytes_of(record), sequence_++))
          .wait();
    } catch (...) {
      room_.reset();
      throw;
    }
    return {room_.records().get(), room_.stride(), size(), nullptr};
  }

  // Where records of a GPU pass the host.
  std::byte* staging(std::size_t bytes, const Queue& queue) {
    if (bytes > staging_size_) {
      staging_ = pinned_memory(bytes, queue.device().index);
      staging_size_ = bytes;
    }
    return staging_.get();
  }

  // `memory`: see begin_exchange().
  Pending start(Header header, std::uint64_t flags, std::span<double> payload, std::vector<double> memory) {
    header.set(Field::ranks, static_cast<std::uint64_t>(size()));
    header.set(Field::payload, static_cast<std::uint64_t>(payload.size()));
    expect_sound(header, payload.size());
    return tell_others(size() > 1, *this, [&] {
      Pending pending(begin({header, flags, {}, payload}, std::move(memory)));
      count(payload.size());
      return pending;
    });
  }
  // One that does not begin has not taken its number: the rank can still decline under it.
  std::unique_ptr<Pending::Impl> begin(Parcel&& own, std::vector<double> memory) {
    auto exchange = begin_exchange(group_, std::move(own), std::move(memory), sequence_);
    ++sequence_;
    return exchange;
  }

  std::shared_ptr<const Group> group_;
  std::uint64_t sequence_ = 0;
  Traffic traffic_;
  std::shared_ptr<LoneReports> lone_;  // of a lone rank on a GPU
  std::shared_ptr<DeviceHub> hub_;     // null while records go through the host
  std::shared_ptr<std::byte> staging_;
  std::size_t staging_size_ = 0;  // bytes
  bool in_place_ = false;         // long records go from memory to memory
  RecordRoom room_;               // where they do
};

}  // namespace

double overdue(const Communicator& group) {
  const auto* const linked = dynamic_cast<const LinkedCommunicator*>(&group);
  return linked != nullptr ? linked->overdue() : -1;
}

std::shared_ptr<Communicator> communicate(std::shared_ptr<Links> links, std::vector<int> members, std::uint64_t context,
                                          const Patience& patience) {
  expect(patience.timeout > 0 && patience.first_timeout > 0, Code::invalid_argument,
         "the timeout of an exchange must be positive");
  return std::make_shared<LinkedCommunicator>(
      std::make_shared<const Group>(std::move(links), std::move(members), context, patience));
}

std::shared_ptr<Communicator> communicate(std::shared_ptr<Links> links, const Patience& patience) {
  std::vector<int> members(static_cast<std::size_t>(links->size()));
  for (std::size_t r = 0; r < members.size(); ++r) members[r] = static_cast<int>(r);
  return communicate(std::move(links), std::move(members), 0, patience);
}

std::shared_ptr<Communicator> sync_group(const std::shared_ptr<Communicator>& world, Sync sync, Queue& queue) {
  if (sync.ranks == Sync::none) return alone(world->name_of(world->rank()));
  if (sync.ranks == Sync::world) return world;
  return world->split(world->rank() / sync.ranks, queue);
}

}  // namespace allnorm
