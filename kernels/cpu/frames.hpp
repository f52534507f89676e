// The stations between two kernels, a few doubles per group: frames and coefficients of y, grad_frames and those of dx;
// and gamma and beta that are read along. Formulas are steps.hpp's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/arrays.hpp"
#include "kernels/calls.hpp"
#include "kernels/cpu/along.hpp"
#include "kernels/ops.hpp"

namespace allnorm::cpu {

using Values = Buffer<double>;

/// The frame of every group of a forward call, from its moments or from where the call takes it; where it `commits`,
/// and what the groups do to the state.
void frames(const ForwardArgs& args, const Gathered& gathered, const Turn& turn, bool commits);

/// Of a loop that is translated once more for what is known of a call.
#define ALLNORM_INLINED __attribute__((always_inline))

/// The coarse groups of the fine groups 0, 1, ... one after another: to divide takes as long as what is done with a
/// group.
class CoarseWalk {
 public:
  explicit CoarseWalk(const Coarsening& to) noexcept
      : divide_(to.divide), modulo_(to.modulo), left_(to.divide - to.first % to.divide), group_(to(0)) {}
  std::int64_t group() const noexcept { return group_; }
  void next() noexcept {
    if (--left_ > 0) return;
    left_ = divide_;
    if (++group_ == modulo_) group_ = 0;
  }

 private:
  std::int64_t divide_, modulo_, left_, group_;
};
/// Calls step(f, its group of the norm, that of the affine part) for every fine group f, in order.
template <class Step>
void for_fine_groups(const LayerCall& call, const Step& step) {
  const std::int64_t size = call.fine.groups();
  const auto keeps = [size](const Coarsening& to) { return to.divide == 1 && to.first == 0 && size <= to.modulo; };
  if (keeps(call.to_norm) && (call.along || keeps(call.to_affine))) {  // a loop without branches
    for (std::int64_t f = 0; f < size; ++f) step(f, f, f);
    return;
  }
  CoarseWalk norm(call.to_norm), affine(call.to_affine);
  for (std::int64_t f = 0; f < size; ++f, norm.next(), affine.next()) step(f, norm.group(), affine.group());
}

/// Per fine group F: y = (x - center) * scale + shift.
struct FineView {
  const double *center = nullptr, *scale = nullptr, *shift = nullptr;  // (F); shift null: 0

  Gate gate(const BackwardArgs& call) const { return {call.activation, call.mask, scale, shift, floor_of(call)}; }
  FineView from(std::int64_t first) const {
    return {center + first, scale == nullptr ? nullptr : scale + first, shift == nullptr ? nullptr : shift + first};
  }
};
/// Those of a call, from its frames.
class FineCoefficients : public FineView {
 public:
  FineCoefficients(const ForwardArgs& call, Queue& queue);
  /// Of what backward reads: scale and shift where they are the gate's.
  FineCoefficients(const BackwardArgs& call, Queue& queue);

 private:
  void make(const LayerCall& call, bool scales, Queue& queue);
  Values own_{};
};

/// The coefficients of dx of every fine group of a backward call, from its frames and the sums over the ranks; they are
/// in `room`.
GradArrays grad_frames(const BackwardArgs& args, const Gathered& gathered, Values& room, Queue& queue);

/// Runs `run` on the call with gamma and beta along as the kernels read them, which slabs would each make them.
template <class Args, class Run>
void with_read_parameters(Args args, const Run& run) {
  if (!args.along) return run(args);
  visit(args.dtype, [&](auto type) {
    using C = compute_t<typename decltype(type)::type>;
    const AlongParameter<C> weight(args.weight, args.affine), bias(args.bias, args.affine);
    if (weight.ready() != nullptr) args.weight = {weight.ready(), dtype_of<C>()};
    if (bias.ready() != nullptr) args.bias = {bias.ready(), dtype_of<C>()};
    run(args);
  });
}

}  // namespace allnorm::cpu
