#include "src/wire.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "kernels/formulas.hpp"
#include "src/transport/deadline.hpp"

namespace allnorm {

namespace {

// On the wire: this prefix, `count` doubles, and a text: why there is nothing to add. A message may have several.
struct Prefix {
  Header header;
  std::uint64_t rank = 0;  // of the group, that it is of
  std::uint64_t flags = 0;
  std::uint64_t count = 0;
  std::uint64_t verdict_size = 0;
  std::uint64_t declined = 0;  // the text tells a rank's own failure, not a mismatch found on the way up a tree
  std::uint64_t nonfinite = 0;
};
static_assert(std::is_trivially_copyable_v<Prefix> && sizeof(Prefix) % alignof(double) == 0);

std::shared_ptr<const Bytes> pack(const Parcel& parcel, int rank) {
  const Prefix prefix{parcel.header,         static_cast<std::uint64_t>(rank),
                      parcel.flags,          parcel.payload.size(),
                      parcel.verdict.size(), parcel.declined,
                      parcel.nonfinite};
  const auto bytes = std::make_shared<Bytes>(sizeof prefix + parcel.payload.size_bytes() + parcel.verdict.size());
  std::byte* to = bytes->data();
  const auto put = [&](const void* from, std::size_t size) {
    if (size > 0) std::memcpy(to, from, size);
    to += size;
  };
  put(&prefix, sizeof prefix);
  put(parcel.payload.data(), parcel.payload.size_bytes());
  put(parcel.verdict.data(), parcel.verdict.size());
  return bytes;
}

// One as it arrived: the payload stays where it is, at `at` of a message's bytes.
struct Arrival {
  std::shared_ptr<const Bytes> bytes;
  std::size_t at = 0;
  Prefix prefix;

  explicit operator bool() const noexcept { return bytes != nullptr; }
  /// With prefix, payload and text.
  std::span<const std::byte> whole() const noexcept {
    return {bytes->data() + at - sizeof prefix, sizeof prefix + prefix.count * sizeof(double) + prefix.verdict_size};
  }
  bool ends_message() const noexcept { return whole().data() + whole().size() == bytes->data() + bytes->size(); }
  std::string verdict() const {
    const std::byte* text = payload() + prefix.count * sizeof(double);
    return {reinterpret_cast<const char*>(text), prefix.verdict_size};
  }
  /// Equal headers have equal lengths: ranks that are out of step may break that.
  void expect_length(std::span<const double> sum) const {
    expect(prefix.count == sum.size(), Code::transport, [&] {
      return "a message has " + std::to_string(prefix.count) + " doubles, must have " + std::to_string(sum.size());
    });
  }
  const std::byte* payload() const noexcept { return bytes->data() + at; }
  void merge_into(std::span<double> sum) const {
    expect_length(sum);
    merge_payload(prefix.header, sum, payload());
  }
  void copy_to(std::span<double> sum) const {
    expect_length(sum);
    if (!sum.empty()) std::memcpy(sum.data(), payload(), sum.size_bytes());
  }
};

// The one that begins at `first` of the message's bytes. `from()`: how errors call the rank that it came from.
template <class Name>
Arrival unpack(std::shared_ptr<const Bytes> bytes, std::size_t first, const Name& from) {
  Arrival arrival{std::move(bytes), first + sizeof(Prefix), {}};
  const std::size_t size = arrival.bytes->size() - first;
  if (size > 0) std::memcpy(&arrival.prefix, arrival.bytes->data() + first, std::min(size, sizeof(Prefix)));
  const Header& header = arrival.prefix.header;
  bool ours = header.get(Field::magic) == Header::magic_value;
  // These two fields are where they always were; the rest is another length in another version.
  const std::uint64_t version = header.get(Field::wire_version);
  expect(!ours || version == Header::version_value, Code::mismatch, [&] {
    return from() + ": another version of allnorm, whose messages are of wire version " + std::to_string(version) +
           ", must be of " + std::to_string(Header::version_value);
  });
  if ((ours = ours && size >= sizeof(Prefix))) {
    const std::size_t rest = size - sizeof(Prefix);
    ours = arrival.prefix.count <= rest / sizeof(double) &&
           arrival.prefix.verdict_size <= rest - arrival.prefix.count * sizeof(double);
  }
  expect(ours, Code::transport, [&] {
    return "a message from " + from() + " has " + std::to_string(arrival.bytes->size()) +
           " bytes and is not one of allnorm's";
  });
  return arrival;
}

// What both ways of exchanging share: the deadline, and the end.
class Exchange : public Pending::Impl {
 public:
  Exchange(std::shared_ptr<const Group> group, Parcel own, std::vector<double> memory, std::uint64_t sequence,
           double timeout)
      : group_(std::move(group)),
        tag_(group_->tag(sequence)),
        own_(std::move(own)),
        memory_(std::move(memory)),
        deadline_(group_->patience, timeout),
        began_(now(group_->patience)),
        warn_when_left_(timeout - std::min(timeout / 2, 30.0)),
        ask_when_left_(std::min(timeout / 2, 1.0)) {
    if ((own_.flags & flag_nonfinite) != 0) own_.nonfinite = rank_bit(group_->rank);
    if (!own_.declined) group_->links->whereabouts.begin_exchange(deadline_.end());
  }
  ~Exchange() override {
    if (!own_.declined) group_->links->whereabouts.end_exchange();
  }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // A rank that declined may take what was sent to it later, or never: nobody waits for that.
  bool poll() final {
    group_->declined->drain();
    try {
      if (!done_) done_ = advance();
      if (done_ && (group_->links->unsent(tag_).empty() || result_.declined)) return true;
      if (++looks_ % 16 == 0 || inquiry_) look_around();
      return false;
    } catch (const Error& error) {
      report_aborted(error);
      throw;
    }
  }
  void relax() final {
    if (group_->patience.relax)
      group_->patience.relax();
    else if (const Pause::Step step = pause_.next(group_->links->crowded()); step > Pause::Step{0})
      group_->links->sleep(step);
  }
  Message take() final {
    expect(result_.verdict.empty(), result_.declined ? Code::aborted : Code::mismatch, result_.verdict);
    return {result_.header, std::move(memory_), result_.flags, std::move(rank_flags_), result_.nonfinite};
  }

 protected:
  virtual bool advance() = 0;
  /// The group's ranks whose messages this one waits for.
  virtual std::vector<int> missing() const = 0;

  std::vector<int> others() const {
    std::vector<int> ranks;
    for (int rank = 0; rank < group_->size(); ++rank)
      if (rank != group_->rank) ranks.push_back(rank);
    return ranks;
  }
  /// The group's ranks as the links number them.
  std::vector<int> in_links(std::vector<int> ranks) const {
    for (int& rank : ranks) rank = group_->members[static_cast<std::size_t>(rank)];
    return ranks;
  }
  std::string compare(const Header& first, int first_rank, const Header& other, int rank) const {
    if (first == other) return {};
    return verdict(first, group_->name_of(first_rank), other, group_->name_of(rank));
  }
  void post(std::vector<int> to, std::shared_ptr<const Bytes> bytes) {
    if (!to.empty()) group_->links->post(in_links(std::move(to)), tag_, std::move(bytes));
  }
  /// What the next message of that rank has; nothing while there is none.
  std::vector<Arrival> receive(int from) {
    const int in_links = group_->members[static_cast<std::size_t>(from)];
    const auto bytes = group_->links->poll(in_links, tag_);
    std::vector<Arrival> arrivals;
    if (!bytes) return arrivals;
    const auto name = [&] { return group_->name_of(from); };
    arrivals.push_back(unpack(bytes, 0, name));
    group_->links->whereabouts.heard_of(in_links, arrivals.front().prefix.header);
    while (!arrivals.back().ends_message())
      arrivals.push_back(unpack(bytes, arrivals.back().at - sizeof(Prefix) + arrivals.back().whole().size(), name));
    return arrivals;
  }

  std::shared_ptr<const Group> group_;
  const std::uint64_t tag_;
  Parcel own_, result_;  // of one payload
  std::vector<std::uint64_t> rank_flags_;

 private:
  // As the links number them: whose messages are not there, and who has not taken this rank's.
  std::vector<int> waits_for() const {
    std::vector<int> ranks = done_ ? std::vector<int>{} : in_links(missing());
    for (const int rank : group_->links->unsent(tag_))
      if (std::find(ranks.begin(), ranks.end(), rank) == ranks.end()) ranks.push_back(rank);
    return ranks;
  }

  // Where another rank's patience ended first, this one tells what it knows all the same.
  void report_aborted(const Error& error) const {
    if (error.code() == Code::aborted && inquiry_ && group_->patience.report)
      group_->patience.report(report(waits_for(), error.message()));
  }

  // The others of a group that is not too large to ask everyone where it is.
  std::vector<int> asked_too() const {
    constexpr int most = 64;
    return group_->size() <= most ? in_links(others()) : std::vector<int>{};
  }
  double waited() const { return now(group_->patience) - began_; }
  LateReport report(const std::vector<int>& ranks, std::string line) const {
    LateReport late = inquiry_->report(ranks, Waiting(own_.header, waited()), std::move(line));
    if (deadline_.left() < -time_to_speak) late.speaks = false;  // held up itself: another one has spoken by now
    return late;
  }
  std::string line(const std::vector<int>& ranks, const std::string& so_far) const {
    return describe(own_.header) + ": " + inquiry_->findings(ranks, so_far);
  }

  // Of those whose messages are not there, one that has left: none of its will come any more. Where ranks are asked
  // they may leave because they were told who is missing, which this one is about to find out too.
  void expect_nobody_left() {
    if (inquiry_) return;
    for (const int rank : waits_for()) {
      if (!group_->links->has_left(rank)) continue;
      done_ = done_ || advance();  // what it sent before that is there by now, or on its way
      if (done_) return;
      if (!group_->links->has_left(rank)) continue;
      const std::string lost = group_->links->lost(rank);
      fail(lost.empty() ? Code::aborted : Code::transport,
           describe(own_.header) + ": " + group_->links->name_of(rank) +
               (lost.empty() ? " has left" : " has ended without a goodbye: " + lost) +
               group_->links->whereabouts.last_heard_of(*group_->links, rank));
    }
  }

  // What a rank does that waits long: it answers those who ask where it is, asks itself before its own patience ends,
  // and says then who is missing. It warns before that, after another round of questions.
  void look_around() {
    const double left = deadline_.left();
    if (own_.declined) {  // nobody waits for this rank, nor it for anybody
      expect(left >= 0, Code::timeout, "a declined exchange is not done");
      return;
    }
    Links& links = *group_->links;
    links.whereabouts.answer(links, own_.header, waited(), [this] { return waits_for(); });
    if (!done_ && looks_ % 256 == 0) {
      expect_nobody_left();
      if (done_) return;  // otherwise others have not taken what this rank has sent
    }
    if (left > (warned_ ? ask_when_left_ : std::max(ask_when_left_, warn_when_left_))) return;
    const std::vector<int> ranks = waits_for();
    if (!inquiry_) inquiry_ = std::make_unique<Inquiry>(links, asked_too());
    inquiry_->look(ranks);
    if (!inquiry_->over()) return;
    const Patience& patience = group_->patience;
    if (left < 0) {
      const LateReport late = report(ranks, line(ranks, "not done after " + deadline_.text()));
      if (patience.report) patience.report(late);
      fail(Code::timeout, late.line);
    }
    if (warned_ || left < time_to_ask) return;  // the answers count at the end
    warned_ = true;
    if (patience.warn)
      patience.warn(report(ranks, line(ranks, "waiting for " + about(waited()) + " of " + deadline_.text())));
    inquiry_.reset();
  }
  static constexpr double time_to_ask = 0.5;  // seconds that another round of questions may take
  static constexpr double time_to_speak = 2;  // after the deadline: others keep their reports longer
  static std::string about(double seconds) { return seconds_text(std::round(seconds * 10) / 10); }

  std::vector<double> memory_;
  Deadline deadline_;
  double began_;                           // by the clock of the deadline
  double warn_when_left_, ask_when_left_;  // seconds
  bool warned_ = false;
  std::unique_ptr<Inquiry> inquiry_;
  int looks_ = 0;
  Pause pause_;
  bool done_ = false;
};

// Every rank gets what every other has made, and merges in rank order: the same bits everywhere. Few ranks send to all
// others, in one step. More would be a step whose messages each of them makes and takes one after another: they pass on
// what they have in log2(size) steps (Bruck et al. 1997), in the k-th of them to the 2^k-th rank below.
class GatherExchange final : public Exchange {
 public:
  GatherExchange(std::shared_ptr<const Group> group, Parcel own, std::vector<double> memory, std::uint64_t sequence,
                 double timeout)
      : Exchange(std::move(group), std::move(own), std::move(memory), sequence, timeout) {
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
class TreeExchange final : public Exchange {
 public:
  TreeExchange(std::shared_ptr<const Group> group, Parcel own, std::vector<double> memory, std::uint64_t sequence,
               double timeout)
      : Exchange(std::move(group), std::move(own), std::move(memory), sequence, timeout) {
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
class RecordExchange final : public Exchange {
 public:
  RecordExchange(std::shared_ptr<const Group> group, const Header& header, std::shared_ptr<std::byte> records,
                 std::size_t stride, std::size_t size, std::uint64_t sequence, double timeout)
      : Exchange(std::move(group), {header}, {}, sequence, timeout),
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

void merge_payload(const Header& header, std::span<double> sum, const std::byte* payload) {
  if (sum.empty()) return;  // heads alone: what they say of moments is about records that go another way
  const auto part = [payload](std::size_t i) {
    double value;
    std::memcpy(&value, payload + i * sizeof value, sizeof value);
    return value;
  };
  const std::size_t means = header.get(Field::moments), width = header.get(Field::co_moments);
  std::size_t i = 0;  // of what is added
  if (means > 0) {
    i = 1 + means + means * width;
    const formulas::Merge merge(sum[0], part(0));
    double *const mean = &sum[1], *const products = mean + means;
    const auto merge_products = [&](const auto w) {
      for (std::size_t block = 0; block < means; block += w)
        for (std::size_t row = block; row < block + w; ++row)
          for (std::size_t column = block; column < block + w; ++column) {
            const std::size_t at = row * w + column - block;
            products[at] = merge.products(products[at], part(1 + means + at), part(1 + row) - mean[row],
                                          part(1 + column) - mean[column]);
          }
    };
    if (!merge.skips()) {
      sum[0] = merge.count;
      if (width == 1)
        merge_products(std::integral_constant<std::size_t, 1>{});  // one loop, in vectors
      else
        merge_products(width);
      for (std::size_t m = 0; m < means; ++m) mean[m] = merge.mean(mean[m], part(1 + m));
    }
  }
  for (; i < sum.size(); ++i) sum[i] += part(i);
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
