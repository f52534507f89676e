#include "src/wire.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "src/group_exchange.hpp"

namespace allnorm {

namespace {

// Every rank gets what every other has made, and merges in rank order: the same bits everywhere. Few ranks send to all
// others, in one step. More would be a step whose messages each of them makes and takes one after another: they pass on
// what they have in log2(size) steps (Bruck et al. 1997), in the k-th of them to the 2^k-th rank below.
class GatherExchange final : public GroupExchange {
 public:
  GatherExchange(std::shared_ptr<const Group> group, Parcel own, std::vector<double> memory, std::uint64_t sequence,
                 double timeout)
      : GroupExchange(std::move(group), std::move(own), std::move(memory), sequence, timeout) {
    const int size = group_->size();
    arrivals_.resize(static_cast<std::size_t>(size));
    auto bytes = pack(own_, group_->rank);
    arrivals_[static_cast<std::size_t>(group_->rank)] = unpack(bytes, 0, [] { return std::string("this rank"); });
    if (size <= most_direct)
      sources_ = others();
    else
      for (int step = 1; step < size; step *= 2) sources_.push_back((group_->rank + step) % size);
    // The last thing that can fail: a rank that has sent takes part. One that declines passes nothing on.
    if (size <= most_direct)
      post(others(), std::move(bytes));
    else if (!own_.declined)
      post({below(1)}, std::move(bytes));
    else
      for (int step = 1; step < size; step *= 2) post({below(step)}, bytes);
  }

 private:
  static constexpr int most_direct = 4;

  int below(int step) const { return (group_->rank - step + group_->size()) % group_->size(); }

  bool advance() override {
    if (group_->size() <= most_direct || own_.declined)
      std::erase_if(sources_, [this](int source) { return takes(source); });
    else
      while (!sources_.empty() && takes(sources_.front())) {
        sources_.erase(sources_.begin());
        step_ *= 2;
        if (!sources_.empty()) post({below(step_)}, all_from_here(step_));
      }
    if (!sources_.empty()) return false;
    merge();
    return true;
  }

  // A message begins with what its sender has made.
  bool takes(int source) {
    std::vector<Arrival> all = receive(source);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const std::uint64_t rank = i == 0 ? static_cast<std::uint64_t>(source) : all[i].prefix.rank;
      expect(rank < arrivals_.size(), Code::transport, [&] {
        return "a message from " + group_->name_of(source) + " is of rank " + std::to_string(rank) + " of " +
               std::to_string(arrivals_.size());
      });
      arrivals_[rank] = std::move(all[i]);
    }
    return !all.empty();
  }
  // What the ranks from this one on have made, `count` of them, as far as it is there: somebody who declines passes
  // nothing on.
  std::shared_ptr<const Bytes> all_from_here(int count) const {
    const int size = group_->size();
    const auto bytes = std::make_shared<Bytes>();
    const auto for_each = [&](const auto& take) {
      for (int i = 0; i < std::min(count, size - count); ++i)
        if (const Arrival& arrival = arrivals_[static_cast<std::size_t>((group_->rank + i) % size)])
          take(arrival.whole());
    };
    std::size_t room = 0;
    for_each([&](std::span<const std::byte> whole) { room += whole.size(); });
    bytes->reserve(room);
    for_each([&](std::span<const std::byte> whole) { bytes->insert(bytes->end(), whole.begin(), whole.end()); });
    return bytes;
  }

  void merge() {  // every rank compares with rank 0, and has itself at its own place
    result_.header = own_.header;
    for (std::size_t rank = 0; rank < arrivals_.size() && !result_.declined; ++rank)
      if (arrivals_[rank] && arrivals_[rank].prefix.declined != 0)
        result_.declined = true, result_.verdict = arrivals_[rank].verdict();
    if (result_.declined) return arrivals_.clear();
    for (std::size_t rank = 0; rank < arrivals_.size(); ++rank)
      expect(static_cast<bool>(arrivals_[rank]), Code::transport,
             [&] { return "messages lack what " + group_->name_of(static_cast<int>(rank)) + " has sent"; });
    for (std::size_t rank = 0; rank < arrivals_.size() && result_.verdict.empty(); ++rank)
      result_.verdict = compare(arrivals_[0].prefix.header, 0, arrivals_[rank].prefix.header, static_cast<int>(rank));
    if (result_.verdict.empty()) std::ranges::fill(own_.payload, 0.0);  // what was there is among the arrivals
    for (const Arrival& arrival : arrivals_) {
      rank_flags_.push_back(arrival.prefix.flags);
      result_.flags |= arrival.prefix.flags;
      result_.nonfinite |= arrival.prefix.nonfinite;
      if (result_.verdict.empty()) arrival.merge_into(own_.payload);
    }
    arrivals_.clear();
  }
  std::vector<int> missing() const override {
    if (group_->size() <= most_direct || own_.declined || sources_.empty()) return sources_;
    return {sources_.front()};
  }

  std::vector<Arrival> arrivals_;  // [rank]
  std::vector<int> sources_;       // whose messages are still to come
  int step_ = 1;
};

// Up a binomial tree to rank 0 and down again: 2 log2(size) steps, one sum, the same bits everywhere.
class TreeExchange final : public GroupExchange {
 public:
  TreeExchange(std::shared_ptr<const Group> group, Parcel own, std::vector<double> memory, std::uint64_t sequence,
               double timeout)
      : GroupExchange(std::move(group), std::move(own), std::move(memory), sequence, timeout) {
    const int rank = group_->rank;
    int bit = 1;
    for (; bit < group_->size() && (rank & bit) == 0; bit <<= 1)
      if (rank + bit < group_->size()) children_.push_back(rank + bit);
    if (rank != 0) parent_ = rank - bit;
    result_ = own_;
    if (!own_.declined) return;
    const auto bytes = pack(own_, group_->rank);
    post(children_, bytes);  // nobody waits for this rank; what they send is drained
    if (parent_ >= 0) post({parent_}, bytes);
    sent_ = true;
  }

 private:
  bool advance() override {
    while (arrived_ < children_.size()) {
      const std::vector<Arrival> from_child = receive(children_[arrived_]);
      if (from_child.empty()) return false;
      const Arrival& child = from_child.front();
      const int rank = children_[arrived_++];
      result_.flags |= child.prefix.flags;
      result_.nonfinite |= child.prefix.nonfinite;
      if (result_.verdict.empty()) {
        result_.verdict = child.verdict();
        result_.declined = child.prefix.declined != 0;
      }
      if (result_.verdict.empty()) result_.verdict = compare(own_.header, group_->rank, child.prefix.header, rank);
      if (result_.verdict.empty())
        child.merge_into(result_.payload);
      else
        result_.payload = {};
    }
    std::shared_ptr<const Bytes> down;
    if (parent_ >= 0) {
      if (!sent_) post({parent_}, pack(result_, group_->rank));
      sent_ = true;
      const std::vector<Arrival> from_parent = receive(parent_);
      if (from_parent.empty()) return false;
      const Arrival& sum = from_parent.front();
      result_ = {own_.header, sum.prefix.flags, sum.verdict(), {}, sum.prefix.declined != 0, sum.prefix.nonfinite};
      if (result_.verdict.empty()) {
        sum.copy_to(own_.payload);
        down = sum.bytes;  // as it came: headers agree
      }
    }
    if (own_.declined) return true;
    std::vector<int> children(children_.rbegin(), children_.rend());  // the deepest subtree first
    if (!children.empty()) post(std::move(children), down ? std::move(down) : pack(result_, group_->rank));
    return true;
  }
  std::vector<int> missing() const override {
    if (arrived_ < children_.size()) return {children_[arrived_]};
    if (parent_ >= 0) return {parent_};
    return {};
  }

  std::vector<int> children_;
  int parent_ = -1;
  std::size_t arrived_ = 0;
  bool sent_ = false;
};

// Records go to every other rank as they are, and are merged where they arrive.
class RecordExchange final : public GroupExchange {
 public:
  RecordExchange(std::shared_ptr<const Group> group, const Header& header, std::shared_ptr<std::byte> records,
                 std::size_t stride, std::size_t size, std::uint64_t sequence, double timeout)
      : GroupExchange(std::move(group), {header}, {}, sequence, timeout),
        records_(std::move(records)),
        stride_(stride),
        size_(size),
        missing_(others()) {
    group_->links->post_from(in_links(missing_), tag_, place(group_->rank), size_);
  }

 private:
  std::shared_ptr<std::byte> place(int rank) const {
    return {records_, records_.get() + static_cast<std::size_t>(rank) * stride_};
  }
  bool advance() override {
    std::erase_if(missing_, [&](int rank) {
      return group_->links->poll_into(group_->members[static_cast<std::size_t>(rank)], tag_, place(rank), size_);
    });
    return missing_.empty();
  }
  std::vector<int> missing() const override { return missing_; }

  std::shared_ptr<std::byte> records_;  // (ranks, stride)
  std::size_t stride_, size_;
  std::vector<int> missing_;
};

}  // namespace

void Declined::drain() {
  if (exchanges_.empty()) return;
  std::vector<std::unique_ptr<Pending::Impl>> all = std::move(exchanges_);  // each of them drains when it is polled
  exchanges_.clear();
  std::erase_if(all, [](const std::unique_ptr<Pending::Impl>& exchange) {
    try {
      return exchange->poll();
    } catch (const Error&) {
      return true;
    }
  });
  exchanges_ = std::move(all);
}

void Links::post_from(std::span<const int>, std::uint64_t, std::shared_ptr<const std::byte>, std::size_t) {
  fail(Code::unsupported, std::string(transport()) + " sends no memory in place");
}
bool Links::poll_into(int, std::uint64_t, std::shared_ptr<std::byte>, std::size_t) {
  fail(Code::unsupported, std::string(transport()) + " receives no memory in place");
}

std::unique_ptr<Pending::Impl> begin_exchange(const std::shared_ptr<const Group>& group, Parcel own,
                                              std::vector<double> memory, std::uint64_t sequence) {
  const double timeout = sequence == 0 ? group->patience.first_timeout : group->patience.timeout;
  if (group->size() <= group->patience.gather_limit)
    return std::make_unique<GatherExchange>(group, std::move(own), std::move(memory), sequence, timeout);
  return std::make_unique<TreeExchange>(group, std::move(own), std::move(memory), sequence, timeout);
}

std::unique_ptr<Pending::Impl> begin_records(const std::shared_ptr<const Group>& group, const Header& header,
                                             std::shared_ptr<std::byte> records, std::size_t stride, std::size_t size,
                                             std::uint64_t sequence) {
  return std::make_unique<RecordExchange>(group, header, std::move(records), stride, size, sequence,
                                          group->patience.timeout);
}

}  // namespace allnorm
