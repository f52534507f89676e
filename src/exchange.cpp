#include "exchange.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>

#include "src/gpu.hpp"

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

std::string verdict(const Header& first, int first_rank, const Header& other, int rank) {
  const std::string text = differences(first, first_rank, other);
  if (text.empty()) return {};
  // "is at ..." reads on from the rank; everything else belongs to the call that all ranks are in
  return "rank " + std::to_string(rank) + (text.starts_with("is at") ? " " : ": " + describe(first) + ": ") + text;
}

std::size_t Communicator::room(std::size_t, const Queue&) const { return 0; }

namespace {

std::size_t bytes_of(const Record& record) noexcept { return sizeof(RecordHead) + record.count * sizeof(double); }
bool is_gpu(const Queue& queue) noexcept { return queue.device().kind != DeviceKind::cpu; }

struct ThroughHost {
  Gathered sums;
  std::uint64_t flags;  // of all ranks
};

// Exchanges the records as messages: on a CUDA queue the record is brought to `staged`, and the sum taken back.
// `more_flags` are this rank's, beside the record's own.
ThroughHost gather_through_host(Communicator& group, const Record& record, std::byte* staged, std::uint64_t more_flags,
                                Queue& queue) {
  const std::byte* own = record.data;
  if (is_gpu(queue)) {
    expect(!is_captured(queue), Code::unsupported, [&] {
      return "an exchange of records over " + std::string(group.transport()) +
             " goes through the host, it cannot be captured in a graph";
    });
    copy_to_host(staged, record.data, bytes_of(record), queue);
    queue.wait();
    own = staged;
  }
  RecordHead head;
  std::memcpy(&head, own, sizeof head);
  std::vector<double> payload(record.count);
  if (record.count > 0) std::memcpy(payload.data(), own + sizeof head, record.count * sizeof(double));
  const Message sum = group.exchange({head.header, std::move(payload), head.flags | more_flags, {}}, queue);
  expect((sum.flags & flag_weights_changed) == 0, Code::invalid_argument,
         "conv_weight has changed within a batch of mini-batches on a rank, must be the same until the batch ends");
  std::byte* to = record.data + sizeof head;
  copy_to_device(to, sum.payload.data(), record.count * sizeof(double), queue);
  return {{nullptr, 0, 0, reinterpret_cast<const double*>(to)}, sum.flags};
}

}  // namespace

Gathered Communicator::gather(const Record& record, Queue& queue) {
  std::vector<std::byte> staged(is_gpu(queue) ? bytes_of(record) : 0);
  return gather_through_host(*this, record, staged.data(), 0, queue).sums;
}

std::shared_ptr<DeviceHub> Links::device_hub(const std::vector<int>&, std::uint64_t, const Patience&) {
  return nullptr;
}

namespace {

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// On the wire: this prefix, `count` doubles, and a text: why there is nothing to add.
struct Prefix {
  Header header;
  std::uint64_t flags = 0;
  std::uint64_t count = 0;
  std::uint64_t verdict_size = 0;
  std::uint64_t declined = 0;  // the text tells a rank's own failure, not a mismatch found on the way up a tree
};
static_assert(std::is_trivially_copyable_v<Prefix> && sizeof(Prefix) % alignof(double) == 0);

// A message as this rank made it.
struct Parcel {
  Header header;
  std::uint64_t flags = 0;
  std::string verdict;  // not empty: who disagrees or failed, and how; then the payload means nothing
  std::vector<double> payload;
  bool declined = false;
};

std::shared_ptr<const Bytes> pack(const Parcel& parcel) {
  const Prefix prefix{parcel.header, parcel.flags, parcel.payload.size(), parcel.verdict.size(), parcel.declined};
  const auto bytes =
      std::make_shared<Bytes>(sizeof prefix + parcel.payload.size() * sizeof(double) + parcel.verdict.size());
  std::byte* to = bytes->data();
  const auto put = [&](const void* from, std::size_t size) {
    if (size > 0) std::memcpy(to, from, size);
    to += size;
  };
  put(&prefix, sizeof prefix);
  put(parcel.payload.data(), parcel.payload.size() * sizeof(double));
  put(parcel.verdict.data(), parcel.verdict.size());
  return bytes;
}

// A message as it arrived: the payload stays where it is.
struct Arrival {
  std::shared_ptr<const Bytes> bytes;
  Prefix prefix;

  explicit operator bool() const noexcept { return bytes != nullptr; }
  std::string verdict() const {
    const std::byte* at = bytes->data() + sizeof prefix + prefix.count * sizeof(double);
    return {reinterpret_cast<const char*>(at), prefix.verdict_size};
  }
  void add_to(std::vector<double>& sum) const noexcept {
    const std::byte* at = bytes->data() + sizeof prefix;
    for (std::size_t i = 0; i < sum.size(); ++i) {
      double value;
      std::memcpy(&value, at + i * sizeof value, sizeof value);
      sum[i] += value;
    }
  }
  std::vector<double> payload() const {
    std::vector<double> values(prefix.count);
    if (prefix.count > 0) std::memcpy(values.data(), bytes->data() + sizeof prefix, prefix.count * sizeof(double));
    return values;
  }
};

Arrival unpack(std::shared_ptr<const Bytes> bytes, int from) {
  Arrival arrival{std::move(bytes), {}};
  const std::size_t size = arrival.bytes->size();
  bool ours = size >= sizeof(Prefix);
  if (ours) {
    std::memcpy(&arrival.prefix, arrival.bytes->data(), sizeof(Prefix));
    const std::size_t rest = size - sizeof(Prefix);
    ours = arrival.prefix.header.get(Field::magic) == Header::magic_value &&
           arrival.prefix.count <= rest / sizeof(double) &&
           arrival.prefix.verdict_size == rest - arrival.prefix.count * sizeof(double);
  }
  expect(ours, Code::transport, [&] {
    return "a message from rank " + std::to_string(from) + " has " + std::to_string(size) +
           " bytes and is not one of allnorm's";
  });
  return arrival;
}

// A group's view of its links. Shared by the communicator and the exchanges that it started.
struct Group {
  std::shared_ptr<Links> links;
  std::vector<int> members;  // [rank in the group] -> rank in links
  int rank = 0;
  std::uint64_t context = 0;
  Patience patience;

  int size() const noexcept { return static_cast<int>(members.size()); }
  std::uint64_t tag(std::uint64_t sequence) const noexcept { return context << 32 | (sequence & 0xffffffffu); }
};

// What both ways of exchanging share: the deadline, and the end.
class Exchange : public Pending::Impl {
 public:
  Exchange(std::shared_ptr<const Group> group, Parcel own, std::uint64_t sequence, double timeout)
      : group_(std::move(group)),
        own_(std::move(own)),
        tag_(group_->tag(sequence)),
        timeout_(timeout),
        deadline_(now() + timeout) {}

  bool poll() final {
    if (!done_) done_ = advance();
    if (done_ && group_->links->flushed(tag_)) return true;
    if (++looks_ % 64 == 0 && now() > deadline_) late();
    return false;
  }
  void relax() final {
    if (group_->patience.relax)
      group_->patience.relax();
    else
      group_->links->relax(looks_);
  }
  Message take() final {
    expect(result_.verdict.empty(), result_.declined ? Code::aborted : Code::mismatch, result_.verdict);
    return {result_.header, std::move(result_.payload), result_.flags, std::move(rank_flags_)};
  }

 protected:
  virtual bool advance() = 0;
  /// The group's ranks that this one waits for, and what else it may be.
  virtual std::vector<int> missing() const = 0;
  virtual std::string behind() const { return {}; }

  void post(std::vector<int> to, const Parcel& parcel) {
    if (to.empty()) return;
    for (int& rank : to) rank = group_->members[static_cast<std::size_t>(rank)];
    group_->links->post(to, tag_, pack(parcel));
  }
  Arrival receive(int from) {
    auto bytes = group_->links->poll(group_->members[static_cast<std::size_t>(from)], tag_);
    return bytes ? unpack(std::move(bytes), from) : Arrival{};
  }

  std::shared_ptr<const Group> group_;
  Parcel own_, result_;
  std::vector<std::uint64_t> rank_flags_;

 private:
  double now() const { return group_->patience.now ? group_->patience.now() : steady_seconds(); }
  [[noreturn]] void late() const {
    std::string who;
    for (const int rank : missing()) who += (who.empty() ? "rank " : ", rank ") + std::to_string(rank);
    std::string seconds = std::to_string(timeout_);
    seconds.erase(seconds.find_last_not_of('0') + 1);
    if (seconds.back() == '.') seconds.pop_back();
    fail(Code::timeout, describe(own_.header) + ": " +
                            (who.empty() ? "sending to the other ranks is" : who + behind() + " is missing,") +
                            " not done after " + seconds + " s");
  }

  std::uint64_t tag_;
  double timeout_, deadline_;
  int looks_ = 0;
  bool done_ = false;
};

// Every rank sends to every other and adds in rank order: the same bits everywhere, in one step.
class GatherExchange final : public Exchange {
 public:
  GatherExchange(std::shared_ptr<const Group> group, Parcel own, std::uint64_t sequence, double timeout)
      : Exchange(std::move(group), std::move(own), sequence, timeout) {
    std::vector<int> others;
    for (int rank = 0; rank < group_->size(); ++rank)
      if (rank != group_->rank) others.push_back(rank);
    post(others, own_);
    arrivals_.resize(static_cast<std::size_t>(group_->size()));
  }

 private:
  bool is_own(std::size_t rank) const noexcept { return static_cast<int>(rank) == group_->rank; }

  bool advance() override {
    bool all = true;
    for (std::size_t rank = 0; rank < arrivals_.size(); ++rank)
      if (!is_own(rank) && !arrivals_[rank]) {
        arrivals_[rank] = receive(static_cast<int>(rank));
        all &= static_cast<bool>(arrivals_[rank]);
      }
    if (!all) return false;

    // Every rank compares with rank 0 and adds in rank order, itself at its own place.
    const Header first = is_own(0) ? own_.header : arrivals_[0].prefix.header;
    result_.header = own_.header;
    for (std::size_t rank = 0; rank < arrivals_.size() && result_.verdict.empty(); ++rank) {
      result_.declined = is_own(rank) ? own_.declined : arrivals_[rank].prefix.declined != 0;
      if (result_.declined) result_.verdict = is_own(rank) ? own_.verdict : arrivals_[rank].verdict();
    }
    for (std::size_t rank = 0; rank < arrivals_.size() && result_.verdict.empty(); ++rank)
      result_.verdict =
          verdict(first, 0, is_own(rank) ? own_.header : arrivals_[rank].prefix.header, static_cast<int>(rank));
    if (result_.verdict.empty()) result_.payload.assign(own_.payload.size(), 0.0);
    for (std::size_t rank = 0; rank < arrivals_.size(); ++rank) {
      rank_flags_.push_back(is_own(rank) ? own_.flags : arrivals_[rank].prefix.flags);
      result_.flags |= rank_flags_.back();
      if (!is_own(rank))
        arrivals_[rank].add_to(result_.payload);
      else
        for (std::size_t i = 0; i < result_.payload.size(); ++i) result_.payload[i] += own_.payload[i];
    }
    arrivals_.clear();
    return true;
  }
  std::vector<int> missing() const override {
    std::vector<int> ranks;
    for (std::size_t rank = 0; rank < arrivals_.size(); ++rank)
      if (!is_own(rank) && !arrivals_[rank]) ranks.push_back(static_cast<int>(rank));
    return ranks;
  }

  std::vector<Arrival> arrivals_;  // [rank]; this rank's own stays empty
};

// Up a binomial tree to rank 0 and down again: 2 log2(size) steps, one sum, the same bits everywhere.
class TreeExchange final : public Exchange {
 public:
  TreeExchange(std::shared_ptr<const Group> group, Parcel own, std::uint64_t sequence, double timeout)
      : Exchange(std::move(group), std::move(own), sequence, timeout) {
    const int rank = group_->rank;
    int bit = 1;
    for (; bit < group_->size() && (rank & bit) == 0; bit <<= 1)
      if (rank + bit < group_->size()) children_.push_back(rank + bit);
    if (rank != 0) parent_ = rank - bit;
    result_ = own_;
    if (!own_.declined) return;
    post(children_, own_);  // nobody waits for this rank; what they send is drained
    if (parent_ >= 0) post({parent_}, own_);
    sent_ = true;
  }

 private:
  bool advance() override {
    while (arrived_ < children_.size()) {
      const Arrival child = receive(children_[arrived_]);
      if (!child) return false;
      const int rank = children_[arrived_++];
      result_.flags |= child.prefix.flags;
      if (result_.verdict.empty()) {
        result_.verdict = child.verdict();
        result_.declined = child.prefix.declined != 0;
      }
      if (result_.verdict.empty()) result_.verdict = verdict(own_.header, group_->rank, child.prefix.header, rank);
      if (result_.verdict.empty())
        child.add_to(result_.payload);
      else
        result_.payload.clear();
    }
    if (parent_ >= 0) {
      if (!sent_) post({parent_}, result_);
      sent_ = true;
      const Arrival sum = receive(parent_);
      if (!sum) return false;
      result_ = {own_.header, sum.prefix.flags, sum.verdict(), sum.payload(), sum.prefix.declined != 0};
    }
    if (own_.declined) return true;
    std::vector<int> children(children_.rbegin(), children_.rend());  // the deepest subtree first
    post(std::move(children), result_);
    return true;
  }
  std::vector<int> missing() const override {
    if (arrived_ < children_.size()) return {children_[arrived_]};
    if (parent_ >= 0) return {parent_};
    return {};
  }
  // A rank further down or up may be the one that is late: only its neighbours in the tree know.
  std::string behind() const override { return ", or a rank that it waits for,"; }

  std::vector<int> children_;
  int parent_ = -1;
  std::size_t arrived_ = 0;
  bool sent_ = false;
};

class LinkedCommunicator final : public Communicator {
 public:
  explicit LinkedCommunicator(std::shared_ptr<const Group> group) : group_(std::move(group)) {}
  LinkedCommunicator(const LinkedCommunicator&) = delete;
  LinkedCommunicator& operator=(const LinkedCommunicator&) = delete;
  ~LinkedCommunicator() override {
    if (hub_) hub_->leave(rank());
  }

  int rank() const noexcept override { return group_->rank; }
  int size() const noexcept override { return group_->size(); }
  std::string_view transport() const noexcept override { return group_->links->transport(); }
  Traffic traffic() const noexcept override { return traffic_; }
  void abort(const Error& error) noexcept override { group_->links->abort(error); }

  // A rank without peers makes no exchange, and its kernels may still find that weights have changed.
  Reporter reporter(const Queue& queue) override {
    if (hub_) return hub_->reporter(rank());
    if (size() > 1 || !is_gpu(queue)) return {};
    if (!lone_) lone_ = lone_reports(queue.device().index);
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
    constexpr std::uint64_t on_cpu = std::uint64_t{1} << 63;  // beside the flags of Flag, between ranks only
    const ThroughHost all = is_gpu(queue)
                                ? gather_through_host(*this, record, staging(bytes_of(record), queue), 0, queue)
                                : gather_through_host(*this, record, nullptr, on_cpu, queue);
    if ((all.flags & on_cpu) == 0) hub_ = group_->links->device_hub(group_->members, group_->context, group_->patience);
    return all.sums;
  }

  Pending start_exchange(Message message, Queue&) override {
    message.header.set(Field::ranks, static_cast<std::uint64_t>(size()));
    message.header.set(Field::payload, static_cast<std::uint64_t>(message.payload.size()));
    count(message.payload.size());
    drain();
    return Pending(begin({message.header, message.flags, {}, std::move(message.payload), false}));
  }

  void decline(const Error& error) noexcept override {
    if (size() == 1) return;
    try {
      const std::string why = "rank " + std::to_string(rank()) + " failed: " + error.message();
      if (hub_) return hub_->abort(why);  // peers wait in their streams, where no message reaches them
      declined_.push_back(begin({Header("declined", Direction::agreement, sequence_), 0, why, {}, true}));
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

 private:
  void count(std::size_t doubles) noexcept {
    ++traffic_.exchanges;
    traffic_.bytes += doubles * sizeof(double);
  }

  // Where records of a GPU pass the host.
  std::byte* staging(std::size_t bytes, const Queue& queue) {
    if (bytes > staging_size_) {
      staging_ = pinned_memory(bytes, queue.device().index);
      staging_size_ = bytes;
    }
    return staging_.get();
  }

  std::unique_ptr<Pending::Impl> begin(Parcel own) {
    const double timeout = sequence_ == 0 ? group_->patience.first_timeout : group_->patience.timeout;
    if (size() <= group_->patience.gather_limit)
      return std::make_unique<GatherExchange>(group_, std::move(own), sequence_++, timeout);
    return std::make_unique<TreeExchange>(group_, std::move(own), sequence_++, timeout);
  }

  // Takes what peers sent to exchanges that this rank declined.
  void drain() {
    const auto over = [](const std::unique_ptr<Pending::Impl>& pending) {
      try {
        return pending->poll();
      } catch (const Error&) {
        return true;
      }
    };
    declined_.erase(std::remove_if(declined_.begin(), declined_.end(), over), declined_.end());
  }

  std::shared_ptr<const Group> group_;
  std::uint64_t sequence_ = 0;
  Traffic traffic_;
  std::vector<std::unique_ptr<Pending::Impl>> declined_;
  std::shared_ptr<LoneReports> lone_;  // of a lone rank on a GPU
  std::shared_ptr<DeviceHub> hub_;     // null while records go through the host
  std::shared_ptr<std::byte> staging_;
  std::size_t staging_size_ = 0;  // bytes
};

}  // namespace

std::shared_ptr<Communicator> communicate(std::shared_ptr<Links> links, std::vector<int> members, std::uint64_t context,
                                          const Patience& patience) {
  expect(patience.timeout > 0 && patience.first_timeout > 0, Code::invalid_argument,
         "the timeout of an exchange must be positive");
  const auto own = std::find(members.begin(), members.end(), links->rank());
  const int rank = static_cast<int>(own - members.begin());
  return std::make_shared<LinkedCommunicator>(
      std::make_shared<const Group>(Group{std::move(links), std::move(members), rank, context, patience}));
}

std::shared_ptr<Communicator> communicate(std::shared_ptr<Links> links, const Patience& patience) {
  std::vector<int> members(static_cast<std::size_t>(links->size()));
  for (std::size_t r = 0; r < members.size(); ++r) members[r] = static_cast<int>(r);
  return communicate(std::move(links), std::move(members), 0, patience);
}

std::shared_ptr<Communicator> sync_group(const std::shared_ptr<Communicator>& world, Sync sync, Queue& queue) {
  if (sync.ranks == Sync::none) return self();
  if (sync.ranks == Sync::world) return world;
  return world->split(world->rank() / sync.ranks, queue);
}

}  // namespace allnorm
