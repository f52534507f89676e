#include "src/wire.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "src/group_exchange.hpp"

namespace allnorm {

namespace {

// The steps of a rank where each passes on what it has (Bruck et al. 1997): log2(ranks) of them, in the k-th of which
// it sends to the 2^k-th rank below. Ranks on several nodes, as many on each, do so first from node to node, every rank
// with what it has made itself, and then within their node: so everything crosses the network once for each other node.
// In the order of ranks a step between nodes would carry what the other node has already (docs/performance.md, "From 5
// ranks on", says what that takes).
std::vector<Step> steps_of(const Links& links, const std::vector<int>& members, int own) {
  std::map<int, std::vector<int>> on_node;
  for (std::size_t rank = 0; rank < members.size(); ++rank)
    on_node[links.node_of(members[rank])].push_back(static_cast<int>(rank));
  std::vector<std::vector<int>> nodes;
  for (auto& [node, ranks] : on_node) nodes.push_back(std::move(ranks));
  const auto uneven = [&](const std::vector<int>& ranks) { return ranks.size() != nodes.front().size(); };
  if (std::any_of(nodes.begin(), nodes.end(), uneven)) {
    nodes.assign(1, std::vector<int>(members.size()));
    std::iota(nodes.front().begin(), nodes.front().end(), 0);
  }
  const std::size_t N = nodes.size(), P = nodes.front().size();
  std::size_t node = 0, place = 0;  // of this rank
  for (std::size_t n = 0; n < N; ++n)
    for (std::size_t p = 0; p < P; ++p)
      if (nodes[n][p] == own) node = n, place = p;
  const auto at = [&](std::size_t nodes_on, std::size_t places_on) {
    return nodes[(node + nodes_on) % N][(place + places_on) % P];
  };
  std::vector<Step> steps;
  for (std::size_t step = 1; step < N; step *= 2) {
    Step& made = steps.emplace_back(Step{at(N - step, 0), at(step, 0)});
    for (std::size_t n = 0; n < std::min(step, N - step); ++n) made.of.push_back(at(n, 0));
  }
  for (std::size_t step = 1; step < P; step *= 2) {
    Step& made = steps.emplace_back(Step{at(0, P - step), at(0, step)});
    for (std::size_t p = 0; p < std::min(step, P - step); ++p)
      for (std::size_t n = 0; n < N; ++n) made.of.push_back(at(n, p));
  }
  return steps;
}

// Every rank gets what every other has made, and merges in rank order: the same bits everywhere, whichever way it came.
// Where ranks share memory each puts it there, for all others to read. Otherwise few ranks send to all others, in one
// step, and more pass on what they have: each would make and take their messages one after another.
class GatherExchange final : public GroupExchange {
 public:
  GatherExchange(std::shared_ptr<const Group> group, Parcel&& own, std::vector<double> memory, std::uint64_t sequence,
                 double timeout)
      : GroupExchange(std::move(group), std::move(own), std::move(memory), sequence, timeout) {
    const std::vector<Step>& steps = group_->steps;
    arrivals_.resize(static_cast<std::size_t>(group_->size()));
    Arrival& mine = arrivals_[static_cast<std::size_t>(group_->rank)];
    if (steps.empty()) {
      sources_ = others();
    } else if (own_.declined) {
      for (const Step& step : steps) sources_.push_back(step.from);
    }
    // The last thing that can fail: a rank that has sent takes part. One that declines passes nothing on.
    if (group_->shares_memory && put()) {
      mine.rest = group_->links->find(in_links(group_->rank), tag_);
      return;
    }
    mine.bytes = pack(own_, group_->rank);
    mine.rest = *mine.bytes;
    if (steps.empty())
      post(others(), mine.bytes);
    else if (!own_.declined)
      post({steps.front().to}, mine.bytes);
    else
      for (const Step& step : steps) post({step.to}, mine.bytes);
  }
  ~GatherExchange() override { let_go(); }
  GatherExchange(const GatherExchange&) = delete;
  GatherExchange& operator=(const GatherExchange&) = delete;

 private:
  bool put() {
    const Prefix prefix = prefix_of(own_, group_->rank);
    constexpr std::array<std::byte, sizeof(double)> zeros{};
    const std::span<const std::byte> parts[] = {std::as_bytes(std::span(&prefix, 1)), std::as_bytes(own_.payload),
                                                std::as_bytes(std::span(own_.verdict)),
                                                std::span(zeros).first(prefix.verdict_size - own_.verdict.size())};
    return group_->links->put(group_->others, tag_, parts);
  }

  bool advance() override {
    const std::vector<Step>& steps = group_->steps;
    if (last_step() == 0)
      std::erase_if(sources_, [this](int source) { return takes(source); });
    else
      while (step_ < steps.size() && takes(steps[step_].from))
        if (++step_ < steps.size()) post({steps[step_].to}, all_of(steps[step_].of));
    if (!sources_.empty() || step_ < last_step()) return false;
    merge();
    let_go();
    return true;
  }

  // A message begins with what its sender has made. Where this rank's lies in shared memory those of the others do so
  // too, unless they are longer or have no room there: links are asked now and then.
  bool takes(int source) {
    if (group_->shares_memory) {
      Arrival& there = arrivals_[static_cast<std::size_t>(source)];
      if ((there = find(source))) return true;
      const bool seldom = looks_ < 512 && (looks_ == 0 || looks_ % 16 != 0);
      if (seldom && arrivals_[static_cast<std::size_t>(group_->rank)].is_shared()) return false;
    }
    Arrival one = receive(source);
    if (!one) return false;
    for (auto rank = static_cast<std::uint64_t>(source); one;) {
      expect(rank < arrivals_.size(), Code::transport, [&] {
        return "a message from " + group_->name_of(source) + " is of rank " + std::to_string(rank) + " of " +
               std::to_string(arrivals_.size());
      });
      Arrival after = next(one, source);
      arrivals_[rank] = std::exchange(one, std::move(after));
      if (one) rank = one.prefix().rank;
    }
    return true;
  }
  // What these ranks have made, as far as it is there: somebody who declines passes nothing on.
  std::shared_ptr<const Bytes> all_of(const std::vector<int>& ranks) const {
    std::size_t size = 0;
    const auto for_each = [&](const auto& take) {
      for (const int rank : ranks)
        if (const Arrival& arrival = arrivals_[static_cast<std::size_t>(rank)]) take(arrival.whole());
    };
    for_each([&](std::span<const std::byte> whole) { size += whole.size(); });
    const auto bytes = std::make_shared<Bytes>(size);
    std::byte* to = bytes->data();
    for_each([&](std::span<const std::byte> whole) {
      std::memcpy(to, whole.data(), whole.size());
      to += whole.size();
    });
    return bytes;
  }

  void merge() {  // every rank compares with rank 0, and has itself at its own place
    for (std::size_t rank = 0; rank < arrivals_.size() && !result_.declined; ++rank)
      if (arrivals_[rank] && arrivals_[rank].prefix().declined != 0)
        result_.declined = true, result_.verdict = arrivals_[rank].verdict();
    if (result_.declined) return;
    for (std::size_t rank = 0; rank < arrivals_.size(); ++rank)
      expect(static_cast<bool>(arrivals_[rank]), Code::transport,
             [&] { return "messages lack what " + group_->name_of(static_cast<int>(rank)) + " has sent"; });
    for (std::size_t rank = 0; rank < arrivals_.size() && result_.verdict.empty(); ++rank)
      result_.verdict =
          compare(arrivals_[0].prefix().header, 0, arrivals_[rank].prefix().header, static_cast<int>(rank));
    rank_flags_.reserve(arrivals_.size());
    for (const Arrival& arrival : arrivals_) {
      rank_flags_.push_back(arrival.prefix().flags);
      result_.flags |= arrival.prefix().flags;
      result_.nonfinite |= arrival.prefix().nonfinite;
      if (result_.verdict.empty()) arrival.expect_length(own_.payload);
    }
    if (result_.verdict.empty()) merge_all(arrivals_, own_.payload);
  }
  void let_go() noexcept {
    for (std::size_t rank = 0; rank < arrivals_.size(); ++rank)
      if (arrivals_[rank].is_shared())
        group_->links->let_go(in_links(static_cast<int>(rank)), arrivals_[rank].rest.data());
    arrivals_.clear();
  }
  std::vector<int> missing() const override {
    if (step_ < last_step()) return {group_->steps[step_].from};
    return sources_;
  }
  std::size_t last_step() const noexcept { return own_.declined ? 0 : group_->steps.size(); }

  std::vector<Arrival> arrivals_;  // [rank]
  std::vector<int> sources_;       // whose messages are still to come, where they are not those of steps
  std::size_t step_ = 0;
};

// Up a binomial tree to rank 0 and down again: 2 log2(size) steps, one sum, the same bits everywhere.
class TreeExchange final : public GroupExchange {
 public:
  TreeExchange(std::shared_ptr<const Group> group, Parcel&& own, std::vector<double> memory, std::uint64_t sequence,
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
      const Arrival child = receive(children_[arrived_]);
      if (!child) return false;
      const int rank = children_[arrived_++];
      result_.flags |= child.prefix().flags;
      result_.nonfinite |= child.prefix().nonfinite;
      if (result_.verdict.empty()) {
        result_.verdict = child.verdict();
        result_.declined = child.prefix().declined != 0;
      }
      if (result_.verdict.empty()) result_.verdict = compare(own_.header, group_->rank, child.prefix().header, rank);
      if (result_.verdict.empty())
        child.merge_into(result_.payload);
      else
        result_.payload = {};
    }
    std::shared_ptr<const Bytes> down;
    if (parent_ >= 0) {
      if (!sent_) post({parent_}, pack(result_, group_->rank));
      sent_ = true;
      const Arrival sum = receive(parent_);
      if (!sum) return false;
      result_ = {own_.header, sum.prefix().flags,         sum.verdict(),
                 {},          sum.prefix().declined != 0, sum.prefix().nonfinite};
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

Group::Group(std::shared_ptr<Links> through, std::vector<int> ranks, std::uint64_t number, const Patience& how)
    : links(std::move(through)), members(std::move(ranks)), context(number), patience(how) {
  constexpr int most_direct = 4;
  rank = static_cast<int>(std::find(members.begin(), members.end(), links->rank()) - members.begin());
  std::ranges::copy_if(members, std::back_inserter(others), [this](int member) { return member != links->rank(); });
  shares_memory = size() > 1 && links->shares_memory(others);
  if (size() > most_direct && size() <= patience.gather_limit && !shares_memory)
    steps = steps_of(*links, members, rank);
}

std::unique_ptr<Pending::Impl> begin_exchange(const std::shared_ptr<const Group>& group, Parcel&& own,
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
