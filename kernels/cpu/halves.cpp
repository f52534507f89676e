// The halves of a layer's call on the CPU: the kernels, and loops over the steps between them.
#include <algorithm>
#include <vector>

#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"

namespace allnorm::cpu {

namespace {

using Values = std::vector<double>;

std::size_t index(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

/// Per fine group F: y = (x - center) * scale + shift.
struct FineCoefficients {
  const double *center = nullptr, *scale = nullptr, *shift = nullptr;  // (F); shift null: 0

  explicit FineCoefficients(const LayerCall& call) {
    if (call.along && call.frame.r == nullptr) {  // the frame as it is
      center = call.frame.mean, scale = call.frame.rstd;
      return;
    }
    const std::int64_t size = call.fine.groups();
    own_.resize(index(3 * size));
    double* const of = own_.data();
    for (std::int64_t f = 0; f < size; ++f) {
      const auto frame = call.frame.get(call.to_norm(f));
      const auto k = steps::affine_of(call, frame, f);
      of[f] = frame.mean, of[size + f] = k.scale, of[2 * size + f] = k.shift;
    }
    center = of, scale = of + size, shift = of + 2 * size;
  }

 private:
  Values own_{};
};

void write_frames(const ForwardArgs& args, const Gathered& gathered, const Turn& turn) {
  for (std::int64_t g = 0; g < args.norm.groups(); ++g)
    args.frame.set(g, steps::frame_of(args, gathered, turn, g, true));
  for (std::int64_t c = 0; args.rules.pools && c < args.state.channels; ++c) steps::pool(args, gathered, turn, c);
  *args.frame.scalars = {turn.count, turn.call};
}

void apply_frames(const ForwardArgs& args, Queue& queue) {
  const FineCoefficients fine(args);
  apply({args.x, args.residual, args.y, args.dtype, args.fine, fine.center, fine.scale, fine.shift, args.activation,
         along_of(args), floor_of(args)},
        queue);
  if (args.mask != nullptr) sign_mask({args.y, args.dtype, args.fine.elements(), args.mask}, queue);
}

}  // namespace

void forward_local(ForwardArgs& args, Queue& queue) {
  const std::int64_t groups = args.norm.groups();
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
  if (args.source == FrameSource::call) {
    const Turn turn = steps::turn_of(args, gathered);
    if (turn.fails) {  // the caller says why
      *args.state.last = turn;
      return;
    }
    steps::forget_hits(args.state);  // of a call that did not come to its end
    write_frames(args, gathered, turn);
    const bool fails = args.rules.nonfinite == NonFinite::fail && steps::keeps_state(args.rules, args.state);
    if (!fails) apply_frames(args, queue);
    const Turn settled = steps::settle(args.rules, args.state, turn);
    if (args.derives)
      *args.state.last = settled;  // derivatives() ends the call
    else
      steps::advance(args.rules, args.state, settled, true);
    return;
  }
  if (args.source == FrameSource::running) {
    for (std::int64_t g = 0; g < args.norm.groups(); ++g) args.frame.set(g, steps::running_frame(args, g));
    *args.frame.scalars = {0, args.state.now().calls};
  }
  if (args.source == FrameSource::unit) {
    for (std::int64_t g = 0; g < args.norm.groups(); ++g) args.frame.set(g, steps::unit_frame());
    *args.frame.scalars = {};
  }
  apply_frames(args, queue);
}

void backward_local(BackwardArgs& args, Queue& queue) {
  if (!args.rules.takes_moments() && !args.wants_weight) return;
  const std::int64_t groups = args.norm.groups(), size = args.fine.groups();
  double *s1 = args.sums, *s2 = args.sums + groups;
  std::fill_n(args.sums, 2 * groups, 0.0);
  const FineCoefficients fine(args);
  const Gate gate{args.activation, args.mask, fine.scale, fine.shift, floor_of(args)};
  const Along along = along_of(args);
  Values sum_g(index(size)), sum_gx(sum_g.size()), sum_level(args.level.given() ? sum_g.size() : 0);
  moments_grad(
      {args.x, args.dy, args.dtype, args.fine, fine.center, gate, sum_g.data(), sum_gx.data(), along, sum_level.data()},
      queue);
  const AffineGradArgs affine{args.x, args.dy, args.dtype, args.norm, fine.center, gate, along};
  const bool is_done =
      !args.wants_weight || (args.along && affine_grad_values(affine, args.dweight, args.dbias, queue));
  const std::size_t parameters = is_done && args.along ? 0 : index(args.affine.groups());
  Values dweight(parameters), dbias(parameters);
  Values dlevel(args.level.given() ? parameters : 0), deps(args.learned_eps.given() ? parameters : 0);
  for (std::int64_t f = 0; f < size; ++f) {
    const std::int64_t g = args.to_norm(f);
    const auto terms =
        steps::grad_terms(args.frame.get(g), steps::gamma_of(args, f), sum_g[index(f)], sum_gx[index(f)]);
    s1[g] += terms.s1;
    s2[g] += terms.s2;
    if (args.along) continue;
    const std::size_t p = index(args.to_affine(f));
    dweight[p] += terms.dgamma;
    dbias[p] += terms.dbeta;
    if (args.level.given()) dlevel[p] += sum_level[index(f)];
    if (args.learned_eps.given()) deps[p] += steps::eps_grad(args, g, terms.s2);
  }
  for (std::int64_t g = 0; g < groups; ++g) args.direct.join(args.frame.rstd, g, s1[g], s2[g]);
  if (!is_done) {
    if (args.along) {
      AffineGradArgs sums = affine;
      sums.dweight = dweight.data();
      sums.dbias = dbias.data();
      affine_grad(sums, queue);
    }
    for (std::int64_t p = 0; p < args.affine.groups(); ++p) {
      args.dweight.set(p, dweight[index(p)]);
      args.dbias.set(p, dbias[index(p)]);
    }
  }
  for (std::size_t p = 0; p < dlevel.size(); ++p) args.dlevel.set(static_cast<std::int64_t>(p), dlevel[p]);
  for (std::size_t p = 0; p < deps.size(); ++p) args.deps.set(static_cast<std::int64_t>(p), deps[p]);
  if (args.record == nullptr) return;
  RecordHead head{args.header, 0, static_cast<std::uint64_t>(2 * groups)};
  head.header.set(Field::call, static_cast<std::uint64_t>(args.frame.scalars->call));
  *reinterpret_cast<RecordHead*>(args.record) = head;
}

void backward_finish(const BackwardArgs& args, const Gathered& gathered, Queue& queue) {
  if (args.dx == nullptr && args.dresidual == nullptr) return;
  const std::int64_t size = args.fine.groups();
  Values gain(index(size)), slope(gain.size()), offset(gain.size()), power(gain.size());
  for (std::int64_t f = 0; f < size; ++f) {
    const std::int64_t g = args.to_norm(f);
    const auto k = steps::grad_of(args, gathered, args.frame.get(g), steps::gamma_of(args, f), g);
    gain[index(f)] = k.gain;
    slope[index(f)] = k.slope;
    offset[index(f)] = k.offset;
    power[index(f)] = k.power;
  }
  const FineCoefficients fine(args);
  apply_grad({args.x,
              args.dy,
              args.dx,
              args.dresidual,
              args.dtype,
              args.fine,
              fine.center,
              {args.activation, args.mask, fine.scale, fine.shift, floor_of(args)},
              gain.data(),
              slope.data(),
              offset.data(),
              power.data(),
              along_of(args)},
             queue);
}

void begin_batch(const Rules& rules, const LayerState& state, Queue& queue) {
  const Turn turn = steps::cut_short(rules, state.now());
  for (std::int64_t c = 0; c < state.channels; ++c) steps::cut_channel(rules, state, turn, c);
  steps::advance(rules, state, turn, false);
  derivatives({.rules = rules, .state = state}, queue);
}

}  // namespace allnorm::cpu
