// Whole halves of a layer's call, as a backend is given them, and the steps in them that every backend takes alike.
// Halves are built from the kernels of ops.hpp and the steps of steps.hpp; a backend may fuse them as it likes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "allnorm/dtype.hpp"
#include "allnorm/message.hpp"
#include "allnorm/options.hpp"
#include "allnorm/partition.hpp"
#include "allnorm/record.hpp"
#include "kernels/hits.hpp"
#include "kernels/layer_state.hpp"
#include "kernels/steps.hpp"

namespace allnorm {

/// How a backend takes a call: in two halves, or all in the second one, a whole group, row or tensor at a time. A first
/// half chooses, and the second half follows; without a first half there are no sums to be spared.
enum class Route : std::uint8_t { halves, groups, rows, tensor };

/// Gradients of the loss by mean and deviation of every group of a frame, beside those that come through y; ranks' add
/// up.
struct Direct {
  Parameter mean{}, sigma{};  ///< (G)

  ALLNORM_HOST_DEVICE bool given() const { return mean.given() || sigma.given(); }
  /// Joins them to this rank's sums of group g.
  ALLNORM_HOST_DEVICE void join(const double* rstd, std::int64_t g, double& s1, double& s2) const {
    if (!given()) return;
    const auto terms = formulas::direct_terms(rstd[g], mean[g], sigma[g]);
    s1 += terms.s1;
    s2 += terms.s2;
  }
};

/// What both directions of a call have.
struct LayerCall {
  const void* x = nullptr;  ///< [norm]
  DType dtype{};
  Partition norm{}, affine{};         ///< what shares a mean and a variance; what shares a gamma
  Partition fine{};                   ///< the common refinement of both, where gamma is folded; norm where it is along
  Coarsening to_norm{}, to_affine{};  ///< of fine groups
  bool along = false;                 ///< every value reads its own gamma and beta: to_affine is not used
  Rules rules{};
  Activation activation{};
  Parameter weight{.otherwise = 1}, bias{};
  Parameter level{};            ///< with gamma folded: y does not fall below it; what `activation` is then, Floor says
  Parameter learned_eps{};      ///< with gamma folded and fine groups those of norm: its size is added to eps
  Direct direct{};              ///< of backward
  steps::FrameView frame{};     ///< (G)
  std::byte* record = nullptr;  ///< null for a lone rank
  Header header{};              ///< what the host knows of the record's
  Reporter reporter{};
  Route route{};  ///< written by the first half
};

/// Where a forward call's frame comes from: this call's statistics, the running ones (inference), an earlier call, or
/// nowhere: a mean of 0 and a deviation of 1.
enum class FrameSource : std::uint8_t { call, running, given, unit };

/// A forward call: y = activation((x - mean) * rstd * r * gamma + d * gamma + beta + residual). Its first half takes
/// the moments of x and makes the rank's record; its second half reads what the ranks sent, takes the steps of
/// steps.hpp, writes frame (unless it is given) and next state, and then y. Members of one half only may be null in the
/// other.
struct ForwardArgs : LayerCall {
  const void* residual = nullptr;  ///< like x, optional
  void* y = nullptr;               ///< like x; may be x itself
  std::uint8_t* mask = nullptr;    ///< optional, (elements + 7) / 8 bytes: bit i%8 of byte i/8 = !(y[i] <= 0), so that
                                   ///< NaN passes as in PyTorch; what backward needs where a residual was added

  FrameSource source = FrameSource::call;
  LayerState state{};                      ///< without values where the layer keeps no running statistics
  double *mean = nullptr, *m2 = nullptr;   ///< (G) a lone rank's moments, between the halves
  std::int64_t entries = 0;                ///< entries of the window that the record has products for
  const std::uint64_t* weights = nullptr;  ///< (2) hash of the convolution's weights, and 1 where they changed within a
                                           ///< batch; only with derives
  bool derives = false;                    ///< derivatives follow (derivatives())
};

/// A backward call: g = dy behind the activation's gate; first half: the sums over g, and dgamma and dbeta; second
/// half: dx and dresidual from the group's sums. The frame is the forward call's, and so is the record's call number.
struct BackwardArgs : LayerCall {
  const void* dy = nullptr;
  void* dx = nullptr;                  ///< optional
  void* dresidual = nullptr;           ///< optional
  const std::uint8_t* mask = nullptr;  ///< the gate where a residual was added
  ParameterGrad dweight{}, dbias{};    ///< this rank's share
  bool wants_weight = false;           ///< one of the two is asked for
  ParameterGrad dlevel{}, deps{};      ///< of level and learned_eps
  double* sums = nullptr;     ///< s1 (G), s2 (G): written by the first half; where there is a record, its payload
  double* scratch = nullptr;  ///< backward_scratch() doubles, contents lost
};
/// (6, fine groups), (4, parameters)
inline std::int64_t backward_scratch(const LayerCall& call) {
  return 6 * call.fine.groups() + 4 * call.affine.groups();
}

namespace steps {

/// What a call with FrameSource::call does.
ALLNORM_HOST_DEVICE inline Turn turn_of(const ForwardArgs& args, const Gathered& gathered) {
  double count = args.record == nullptr ? static_cast<double>(args.norm.group_size()) : count_of(gathered);
  if (args.rules.pools && args.norm.groups() == 0) count = 0;  // no sample has the positions that it would have
  return turn_of(args.rules, args.state.now(), count, args.derives);
}

/// What a learned eps adds to eps in group g.
ALLNORM_HOST_DEVICE inline double learned_eps_of(const LayerCall& call, std::int64_t g) {
  return call.learned_eps.given() ? std::fabs(call.learned_eps[call.to_affine(g)]) : 0;
}

/// The ranks whose moments of group g are not finite, where those of all together are not.
ALLNORM_HOST_DEVICE inline std::uint64_t ranks_hit(const ForwardArgs& args, const Gathered& gathered, std::int64_t g) {
  if (args.record == nullptr) return rank_bit(0);
  if (gathered.sums != nullptr) return gathered.nonfinite;
  const Layout layout{args.norm.groups()};
  std::uint64_t ranks = 0;
  for (int rank = 0; rank < gathered.ranks; ++rank) {
    const double* const part = payload_of(gathered, rank);
    if (!formulas::usable({part[layout.mean(g)], part[layout.m2(g)]})) ranks |= rank_bit(rank);
  }
  return ranks;
}

/// The frame of group g in such a call; `commits`: and its next state.
ALLNORM_PER_GROUP GroupFrame frame_of(const ForwardArgs& args, const Gathered& gathered, const Turn& turn,
                                      std::int64_t g, bool commits) {
  const Layout layout{args.norm.groups()};
  const auto current =
      args.record == nullptr ? moments_of(turn.count, args.mean[g], args.m2[g]) : moments_of(gathered, layout, g);
  if (commits && !formulas::usable({current.mean, args.rules.scaled ? current.var : 0}))
    note_hit(args.state, g, ranks_hit(args, gathered, g));
  const auto product = [&](std::int64_t entry, bool of_variance) {
    if (!args.rules.compensates()) return 0.0;
    return summed(gathered, of_variance ? layout.dvar(entry, g) : layout.dmean(entry, g));
  };
  return frame_of(args.rules, args.state, turn, g, current, product, commits, learned_eps_of(args, g));
}

/// With pools: the next state of channel c, from the frames of all samples, which are made again: on a GPU those in
/// memory may not be there yet.
ALLNORM_HOST_DEVICE inline void pool(const ForwardArgs& args, const Gathered& gathered, const Turn& turn,
                                     std::int64_t c) {
  const std::int64_t channels = args.state.channels, groups = args.norm.groups();
  const double share = static_cast<double>(channels) / static_cast<double>(groups);
  formulas::Moments mean;
  for (std::int64_t g = c; g < groups; g += channels) {
    const GroupFrame frame = frame_of(args, gathered, turn, g, false);
    mean.mean += frame.mean * share;
    mean.var += frame.var * share;
  }
  const double unbiased = args.rules.unbiased_running_var ? formulas::bessel(turn.count) : 1;
  write_next(args.rules, args.state, turn, c, {}, {mean.mean, mean.var * unbiased, mean.var});
}

/// The frame of group g from the running statistics.
ALLNORM_HOST_DEVICE inline GroupFrame running_frame(const ForwardArgs& args, std::int64_t g) {
  return running_frame(args.rules, args.state, args.rules.pools ? g % args.state.channels : g);
}

/// This rank's share of the gradient of the learned eps of group g, from the group's s2.
ALLNORM_HOST_DEVICE inline double eps_grad(const LayerCall& call, std::int64_t g, double s2) {
  return formulas::learned_eps_grad(call.learned_eps[call.to_affine(g)], call.frame.rstd[g], s2);
}

/// Gamma of fine group f, as far as it is folded; and of group p of the affine part.
ALLNORM_HOST_DEVICE inline double gamma_at(const LayerCall& call, std::int64_t p) {
  return call.along ? 1 : call.weight[p];
}
ALLNORM_HOST_DEVICE inline double gamma_of(const LayerCall& call, std::int64_t f) {
  return call.along ? 1 : gamma_at(call, call.to_affine(f));
}

/// Scale and shift of fine group f, whose norm's group has this frame; and of one that has group p of the affine part.
ALLNORM_HOST_DEVICE inline formulas::ApplyCoefficients affine_at(const LayerCall& call, const GroupFrame& frame,
                                                                 std::int64_t p) {
  return formulas::apply(frame.rstd, frame.correction, gamma_at(call, p), call.along ? 0 : call.bias[p]);
}
ALLNORM_HOST_DEVICE inline formulas::ApplyCoefficients affine_of(const LayerCall& call, const GroupFrame& frame,
                                                                 std::int64_t f) {
  return affine_at(call, frame, call.along ? 0 : call.to_affine(f));
}

/// Coefficients of dx of a group with this frame and `count` values, from its sums over the ranks; `weight`: its gamma
/// as far as it is folded.
ALLNORM_HOST_DEVICE inline formulas::GradCoefficients grad_of(const LayerCall& call, const GroupFrame& frame,
                                                              double weight, double count, double s1, double s2) {
  if (call.rules.unbiased) {
    if (count == 1) return {frame.rstd, frame.rstd, frame.rstd, 1};  // NaN, as y
    s2 *= count / (count - 1);
  }
  s2 = call.rules.scaled ? s2 * formulas::steepness(call.rules, frame.var) : 0;
  return formulas::apply_grad(frame.rstd, frame.correction.r, weight, frame.share, call.rules.centred, count, s1, s2,
                              call.direct.given());
}
ALLNORM_HOST_DEVICE inline formulas::GradCoefficients grad_of(const BackwardArgs& args, const Gathered& gathered,
                                                              const GroupFrame& frame, double weight, std::int64_t g) {
  return grad_of(args, frame, weight, args.frame.scalars->count, summed(gathered, g),
                 summed(gathered, args.norm.groups() + g));
}

}  // namespace steps
}  // namespace allnorm
