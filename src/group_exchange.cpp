#include "src/group_exchange.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include <hwy/cache_control.h>

namespace allnorm {

namespace {

constexpr int most_quick = 16;       // looks without one at the clock, which takes as long
constexpr double time_to_ask = 0.5;  // seconds that another round of questions may take
constexpr double time_to_speak = 2;  // after the deadline: others keep their reports longer

std::string about(double seconds) { return seconds_text(std::round(seconds * 10) / 10); }

}  // namespace

GroupExchange::GroupExchange(std::shared_ptr<const Group> group, Parcel&& own, std::vector<double> memory,
                             std::uint64_t sequence, double timeout)
    : group_(std::move(group)),
      tag_(group_->tag(sequence)),
      own_(std::move(own)),
      memory_(std::move(memory)),
      deadline_(group_->patience, timeout),
      began_(deadline_.end() - timeout),
      warn_when_left_(timeout - std::min(timeout / 2, 30.0)),
      ask_when_left_(std::min(timeout / 2, 1.0)) {
  if ((own_.flags & flag_nonfinite) != 0) own_.nonfinite = rank_bit(group_->rank);
  if (!own_.declined) group_->links->whereabouts.begin_exchange(deadline_.end());
}

GroupExchange::~GroupExchange() {
  if (!own_.declined) group_->links->whereabouts.end_exchange();
}

// A rank that declined may take what was sent to it later, or never: nobody waits for that.
bool GroupExchange::poll() {
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

void GroupExchange::relax() {
  if (group_->patience.relax)
    group_->patience.relax();
  else if (looks_ < most_quick && !group_->links->crowded())
    hwy::Pause();
  else if (const Pause::Step step = pause_.next(group_->links->crowded()); step > Pause::Step{0})
    group_->links->sleep(step);
}

Message GroupExchange::take() {
  expect(result_.verdict.empty(), result_.declined ? Code::aborted : Code::mismatch, result_.verdict);
  return {own_.header, std::move(memory_), result_.flags, std::move(rank_flags_), result_.nonfinite};
}

std::vector<int> GroupExchange::others() const {
  std::vector<int> ranks;
  for (int rank = 0; rank < group_->size(); ++rank)
    if (rank != group_->rank) ranks.push_back(rank);
  return ranks;
}

std::vector<int> GroupExchange::in_links(std::vector<int> ranks) const {
  for (int& rank : ranks) rank = group_->members[static_cast<std::size_t>(rank)];
  return ranks;
}

std::string GroupExchange::compare(const Header& first, int first_rank, const Header& other, int rank) const {
  if (first == other) return {};
  return verdict(first, group_->name_of(first_rank), other, group_->name_of(rank));
}

void GroupExchange::post(std::vector<int> to, std::shared_ptr<const Bytes> bytes) {
  if (!to.empty()) group_->links->post(in_links(std::move(to)), tag_, std::move(bytes));
}

Arrival GroupExchange::unpacked(std::span<const std::byte> rest, std::shared_ptr<const Bytes> bytes, int from) const {
  return unpack(rest, std::move(bytes), [&] { return group_->name_of(from); });
}

Arrival GroupExchange::receive(int from) {
  auto bytes = group_->links->poll(in_links(from), tag_);
  if (!bytes) return {};
  const std::span<const std::byte> message = *bytes;
  Arrival first = unpacked(message, std::move(bytes), from);
  group_->links->whereabouts.heard_of(in_links(from), first.prefix().header);
  return first;
}

Arrival GroupExchange::find(int from) {
  const std::span<const std::byte> message = group_->links->find(in_links(from), tag_);
  if (message.empty()) return {};
  Arrival arrival = unpacked(message, nullptr, from);
  expect(arrival.behind().empty(), Code::transport,
         [&] { return not_a_message(group_->name_of(from), message.size()); });
  group_->links->whereabouts.heard_of(in_links(from), arrival.prefix().header);
  return arrival;
}

Arrival GroupExchange::next(const Arrival& before, int from) const {
  return before.behind().empty() ? Arrival{} : unpacked(before.behind(), before.bytes, from);
}

// As the links number them: whose messages are not there, and who has not taken this rank's.
std::vector<int> GroupExchange::waits_for() const {
  std::vector<int> ranks = done_ ? std::vector<int>{} : in_links(missing());
  for (const int rank : group_->links->unsent(tag_))
    if (std::find(ranks.begin(), ranks.end(), rank) == ranks.end()) ranks.push_back(rank);
  return ranks;
}

// Where another rank's patience ended first, this one tells what it knows all the same.
void GroupExchange::report_aborted(const Error& error) const {
  if (error.code() == Code::aborted && inquiry_ && group_->patience.report)
    group_->patience.report(report(waits_for(), error.message()));
}

// The others of a group that is not too large to ask everyone where it is.
std::vector<int> GroupExchange::asked_too() const {
  constexpr int most = 64;
  return group_->size() <= most ? in_links(others()) : std::vector<int>{};
}

LateReport GroupExchange::report(const std::vector<int>& ranks, std::string line) const {
  LateReport late = inquiry_->report(ranks, Waiting(own_.header, waited()), std::move(line));
  if (deadline_.left() < -time_to_speak) late.speaks = false;  // held up itself: another one has spoken by now
  return late;
}

std::string GroupExchange::line(const std::vector<int>& ranks, const std::string& so_far) const {
  return describe(own_.header) + ": " + inquiry_->findings(ranks, so_far);
}

// Of those whose messages are not there, one that has left: none of its will come any more. Where ranks are asked
// they may leave because they were told who is missing, which this one is about to find out too.
void GroupExchange::expect_nobody_left() {
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
void GroupExchange::look_around() {
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

}  // namespace allnorm
