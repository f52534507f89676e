// What the halves of a call make for the kernels: the coefficients of fine groups, and gamma and beta that are read
// along.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/calls.hpp"
#include "kernels/cpu/along.hpp"
#include "kernels/ops.hpp"

namespace allnorm::cpu {

using Values = std::vector<double>;

inline std::size_t index(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

/// Per fine group F: y = (x - center) * scale + shift.
struct FineView {
  const double *center = nullptr, *scale = nullptr, *shift = nullptr;  // (F); shift null: 0

  Gate gate(const BackwardArgs& call) const { return {call.activation, call.mask, scale, shift, floor_of(call)}; }
  FineView from(std::int64_t first) const {
    return {center + first, scale + first, shift == nullptr ? nullptr : shift + first};
  }
};
/// Those of a call.
struct FineCoefficients : FineView {
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
