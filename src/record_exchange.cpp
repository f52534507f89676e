#include "src/record_exchange.hpp"

#include <algorithm>

#include "kernels/group_steps.hpp"

namespace allnorm {

namespace {

// Doubles of scratch; hashes are made of two words each.
std::int64_t scratch_for(const Communicator& group) {
  static_assert(sizeof(steps::Hashes) == 2 * sizeof(double));
  return std::max(2 * steps::HashChannels::parts, std::int64_t{group.size()} + 1);
}

}  // namespace

RecordExchange::RecordExchange(const NormImpl& norm, const Header& header, std::int64_t count, Queue& queue)
    : norm_(&norm),
      header_(header),
      work_(norm.make_work(scratch_for(*norm.group_), count, header_, queue)),
      reporter_(norm.group_->reporter(queue)) {}

void RecordExchange::open_forward(double values, Queue& queue) {
  const LayerState& state = norm_->memory_.view();
  auto* const hashes = reinterpret_cast<steps::Hashes*>(work_.scratch);
  queue.ops().each({steps::HashChannels{state, hashes}}, steps::HashChannels::parts, queue);
  queue.ops().each({steps::OpenForward{work_.record.data, header_, norm_->memory_.rules(), state, hashes,
                                       static_cast<std::int64_t>(work_.record.count), values, reporter_}},
                   1, queue);
}

void RecordExchange::open_backward(const std::int64_t* call, Queue& queue) {
  queue.ops().each(
      {steps::OpenBackward{work_.record.data, header_, call, static_cast<std::int64_t>(work_.record.count), reporter_}},
      1, queue);
}

Gathered RecordExchange::gather(Queue& queue) {
  const Gathered gathered = norm_->gather(work_, true, queue);
  auto* const faults = reinterpret_cast<std::uint64_t*>(work_.scratch);
  const std::int64_t ranks = gathered.records != nullptr ? gathered.ranks : 0;
  fails_ = faults + ranks;
  const std::byte* const own = work_.record.data;
  queue.ops().each({steps::CompareHeads{gathered, own, faults}}, ranks, queue);
  queue.ops().each({steps::JudgeHeads{gathered, own, faults, reporter_, fails_}}, 1, queue);
  return gathered;
}

}  // namespace allnorm
