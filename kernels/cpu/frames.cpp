#include "kernels/cpu/frames.hpp"

#include "kernels/cpu/grid.hpp"

namespace allnorm::cpu {

namespace {

/// Likewise on the call and its turn; where there is neither a history nor a correction, as in most layers, on copies
/// that say so, so that the steps of a group have no such branches.
template <class Run>
void with_known_steps(const ForwardArgs& args, const Turn& turn, const Run& run) {
  if (args.rules.renorm || args.state.has_history() || turn.averages || turn.accumulates || turn.starts)
    return run(args, turn);
  ForwardArgs known = args;
  known.rules.renorm = false;
  known.state.fields = LayerState::fields_without_history;
  known.frame.r = nullptr;
  Turn plain = turn;
  plain.averages = plain.accumulates = plain.from_window = plain.starts = false;
  run(known, plain);
}

}  // namespace

void frames(const ForwardArgs& args, const Gathered& gathered, const Turn& turn, bool commits) {
  const std::int64_t groups = args.norm.groups();
  switch (args.source) {
    case FrameSource::call:
      return with_known_steps(args, turn, [&](const ForwardArgs& call, const Turn& own) ALLNORM_INLINED {
        for (std::int64_t g = 0; g < groups; ++g) call.frame.set(g, steps::frame_of(call, gathered, own, g, commits));
      });
    case FrameSource::running:
      for (std::int64_t g = 0; g < groups; ++g) args.frame.set(g, steps::running_frame(args, g));
      return;
    case FrameSource::unit:
      for (std::int64_t g = 0; g < groups; ++g) args.frame.set(g, steps::unit_frame());
      return;
    case FrameSource::given:
      return;
  }
}

FineCoefficients::FineCoefficients(const ForwardArgs& call, Queue& queue) { make(call, true, queue); }

FineCoefficients::FineCoefficients(const BackwardArgs& call, Queue& queue) {
  const GateKind kind = kind_of(Gate{call.activation, call.mask, nullptr, nullptr, floor_of(call)});
  make(call, call.along || kind == GateKind::sign || kind == GateKind::level, queue);
}

void FineCoefficients::make(const LayerCall& call, bool scales, Queue& queue) {
  const std::int64_t size = call.fine.groups();
  const bool same = call.to_norm.divide == 1 && size == call.norm.groups();  // every group of the norm is a fine one
  if (same) center = call.frame.mean;
  if (call.along && call.frame.r == nullptr) {  // the frame as it is
    scale = call.frame.rstd;
    return;
  }
  if (same && !scales) return;
  own_ = Values(index((scales ? 3 : 1) * size), queue, Fill::none);
  double* const of = own_.data();
  center = of;
  if (scales) scale = of + size, shift = of + 2 * size;
  for_fine_groups(call, [&](std::int64_t f, std::int64_t g, std::int64_t p) {
    const auto frame = call.frame.get(g);
    of[f] = frame.mean;
    if (!scales) return;
    const auto k = steps::affine_at(call, frame, p);
    of[size + f] = k.scale, of[2 * size + f] = k.shift;
  });
}

GradArrays grad_frames(const BackwardArgs& args, const Gathered& gathered, Values& room, Queue& queue) {
  const std::int64_t size = args.fine.groups();
  room = Values(index(4 * size), queue, Fill::none);
  const GradArrays k{room.data(), room.data() + size, room.data() + 2 * size, room.data() + 3 * size};
  for_fine_groups(args, [&](std::int64_t f, std::int64_t g, std::int64_t p) {
    k.set(f, steps::grad_of(args, gathered, args.frame.get(g), steps::gamma_at(args, p), g));
  });
  return k;
}

}  // namespace allnorm::cpu
