// What a layer tells of a call's values: which ranks had some that are not finite, and that there are too many.
#include <algorithm>
#include <string>
#include <vector>

#include "src/exchange.hpp"
#include "src/nonfinite_text.hpp"
#include "src/norm_impl.hpp"

namespace allnorm {

namespace {

// "rank 1", "rank 1 and rank 2"; where no rank's own values are so, they are together, or nobody knows whose.
std::string names_of(std::uint64_t ranks, const Communicator& group) {
  std::string text;
  const int known = std::min(group.size(), 63);
  for (int rank = 0; rank < known; ++rank)
    if ((ranks & rank_bit(rank)) != 0) text += (text.empty() ? "" : " and ") + group.name_of(rank);
  if ((ranks & rank_bit(known)) != 0) text += (text.empty() ? "" : " and ") + std::string("ranks beyond the first 63");
  return text.empty() ? "all ranks together" : text;
}

}  // namespace

std::string nonfinite_text(std::uint64_t ranks, const Communicator& group, const Header& call,
                           const NonFinitePlaces& places) {
  std::string text = names_of(ranks, group) + ": " + describe(call) + ": input is not finite in " + places.kind + " " +
                     std::to_string(places.first);
  if (places.count > 1) text += " and " + std::to_string(places.count - 1) + " more";
  return text;
}

void fail_as_nonfinite(const std::string& text) { fail(Code::non_finite, text + ", must be finite everywhere"); }

NonFiniteCalls NormImpl::nonfinite(const HitsMet& met) const {
  if (met.calls == 0) return {};
  const Header call(name_, Direction::forward, static_cast<std::uint64_t>(met.call));
  const bool channels = tells_channels_ || layer_.statistics() == Axes{Axis::channel};
  return {met.calls, nonfinite_text(met.last.ranks, *group_, call,
                                    {channels ? "channel" : "group", met.last.first, met.last.groups})};
}

void NormImpl::expect_finite() {
  if (layer_.options.nonfinite != NonFinite::fail || memory_.met().calls == failed_) return;
  const HitsMet met = memory_.met();
  failed_ = met.calls;
  expect_finite(met);
}

void NormImpl::expect_finite(const HitsMet& met) const {
  if (met.calls > 0) fail_as_nonfinite(nonfinite(met).last);
}

void NormImpl::expect_counted(const Turn& call) const {
  expect(call.count <= formulas::most_values, Code::invalid_input,
         [&] { return too_many_values(Header(name_, Direction::forward, static_cast<std::uint64_t>(call.call))); });
}

}  // namespace allnorm
