// The halves of a forward call on the CPU: the kernels, and the frames between them. Where nothing is exchanged, both
// in the second one, slab by slab.
#include "kernels/cpu/frames.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/slabs.hpp"

namespace allnorm::cpu {

namespace {

/// What committed frames note, of the slabs that threads have done in any order.
void note_hits(const ForwardArgs& args) {
  for (std::int64_t g = 0; g < args.norm.groups(); ++g)
    if (!formulas::usable({args.mean[g], args.rules.scaled ? args.m2[g] : 0}))
      steps::note_hit(args.state, g, rank_bit(0));
}

/// `whole`: values of the call that `args` is, or is a part of.
void apply_frames(const ForwardArgs& args, std::int64_t whole, Queue& queue) {
  const FineCoefficients fine(args, queue);
  apply_part({args.x, args.residual, args.y, args.dtype, args.fine, fine.center, fine.scale, fine.shift,
              args.activation, along_of(args), floor_of(args)},
             whole, queue);
  if (args.mask != nullptr) sign_mask({args.y, args.dtype, args.fine.elements(), args.mask}, queue);
}

void forward_by_slabs(const ForwardArgs& call, const Gathered& gathered, const Turn& turn, Queue& queue) {
  const Slabs slabs = slabs_of(call, queue);
  with_read_parameters(call, [&](const ForwardArgs& args) {
    slabs.for_each(args, queue, [&](const ForwardArgs& slab, std::int64_t, Queue& one) {
      moments({slab.x, slab.dtype, slab.norm, slab.mean, slab.m2}, one);
      frames(slab, gathered, turn, false);
      apply_frames(slab, slabs.whole, one);
    });
  });
  note_hits(call);
}

}  // namespace

void forward_local(ForwardArgs& args, Queue& queue) {
  const std::int64_t groups = args.norm.groups();
  if (slabs_of(args, queue).cuts()) {
    args.route = Route::groups;
    return;
  }
  if (args.record == nullptr) return moments({args.x, args.dtype, args.norm, args.mean, args.m2}, queue);
  const steps::Layout layout{groups};
  double* payload = steps::payload_of(args.record);
  payload[0] = static_cast<double>(args.norm.group_size());
  moments({args.x, args.dtype, args.norm, payload + layout.mean(0), payload + layout.m2(0)}, queue);

  RecordHead head{args.header, 0, static_cast<std::uint64_t>(layout.size(args.entries))};
  steps::Hashes hashes;
  if (args.rules.persists) {
    hashes = steps::hashes_of(args.state);
    for (std::int64_t c = 0; c < args.state.channels; ++c) hashes.add(steps::hashes_of(args.state, c));
  }
  steps::write_header(args.rules, args.state, hashes, head.header);
  if (args.weights != nullptr) {
    head.header.set(Field::weight_hash, args.weights[0]);
    if (args.weights[1] != 0) head.flags |= flag_weights_changed;
  }
  *reinterpret_cast<RecordHead*>(args.record) = head;
}

void forward_finish(const ForwardArgs& args, const Gathered& gathered, Queue& queue) {
  const std::int64_t whole = args.norm.elements();
  if (args.source == FrameSource::call) {
    const Turn turn = steps::turn_of(args, gathered);
    if (turn.fails) {  // the caller says why
      *args.state.last = turn;
      return;
    }
    steps::forget_hits(args.state);  // of a call that did not come to its end
    if (args.route == Route::groups)
      forward_by_slabs(args, gathered, turn, queue);
    else
      frames(args, gathered, turn, true);
    for (std::int64_t c = 0; args.rules.pools && c < args.state.channels; ++c) steps::pool(args, gathered, turn, c);
    *args.frame.scalars = {turn.count, turn.call};
    const bool fails = args.rules.nonfinite == NonFinite::fail && steps::keeps_state(args.rules, args.state);
    if (args.route != Route::groups && !fails) apply_frames(args, whole, queue);
    const Turn settled = steps::settle(args.rules, args.state, turn);
    if (args.derives)
      *args.state.last = settled;  // derivatives() ends the call
    else
      steps::advance(args.rules, args.state, settled, true);
    return;
  }
  frames(args, gathered, {}, false);
  if (args.source == FrameSource::running) *args.frame.scalars = {0, args.state.now().calls};
  if (args.source == FrameSource::unit) *args.frame.scalars = {};
  apply_frames(args, whole, queue);
}

void begin_batch(const Rules& rules, const LayerState& state, Queue& queue) {
  const Turn turn = steps::cut_short(rules, state.now());
  for (std::int64_t c = 0; c < state.channels; ++c) steps::cut_channel(rules, state, turn, c);
  steps::advance(rules, state, turn, false);
  derivatives({.rules = rules, .state = state}, queue);
}

}  // namespace allnorm::cpu
