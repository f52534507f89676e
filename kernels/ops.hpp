// The table of functions that a backend fills (kernels/cpu/ops.cpp): reductions over x and maps over x. Arrays are in
// the queue's device memory, dense, and described by a Partition [keep0][reduce0][keep1][reduce1]; G =
// partition.groups(). A null pointer means "not given". Arrays of statistics and coefficients are double. Any extent
// may be 0. Every reduction has a fixed order that depends on the shape alone, never on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "allnorm/device.hpp"
#include "allnorm/dtype.hpp"
#include "allnorm/options.hpp"
#include "allnorm/partition.hpp"
#include "kernels/calls.hpp"
#include "kernels/layer_state.hpp"
#include "kernels/neighbours.hpp"

namespace allnorm {

/// Local moments of every group, two-pass quality (shifted sums per block, blocks combined by Chan's formula).
struct MomentsArgs {
  const void* x = nullptr;  ///< [partition]
  DType dtype{};
  Partition partition{};
  double* mean = nullptr;  ///< (G); 0 for an empty group
  double* m2 = nullptr;    ///< (G) sum of (x-mean)^2; 0 for an empty group
};

/// Gamma and beta that vary within a group, so that they cannot be folded into its scale and shift (LN): the value at
/// memory offset i has those of its group of `affine`. Kernels use them in the compute type.
struct Along {
  Parameter weight{.otherwise = 1}, bias{};
  Partition affine{};  ///< of the same elements
  bool given = false;  ///< false: 1 and 0 everywhere, and nothing of this is read
};
inline Along along_of(const LayerCall& call) { return {call.weight, call.bias, call.affine, call.along}; }

/// The level that y does not fall below, in place of an activation and a residual and where gamma is folded: y = max(z,
/// level), compared in the compute type. What y is at the level takes of dy is what the activation does to 0: slope
/// times it, or nothing with relu; the level takes the rest, and all of dy where z is below.
struct Floor {
  Parameter level{};
  Coarsening to{};  ///< from the groups of the partition to levels

  ALLNORM_HOST_DEVICE bool given() const { return level.given(); }
  ALLNORM_HOST_DEVICE double operator[](std::int64_t group) const { return level[to(group)]; }
};
inline Floor floor_of(const LayerCall& call) { return {call.level, call.to_affine}; }

/// y = activation(((x - center) * scale + shift) * weight + bias + residual), with weight and bias of `along`. With T =
/// compute_t of the dtype the kernel computes (x - T(center)) * T(scale) + T(shift + scale * (T(center) - center)), so
/// that the rounding of the mean costs nothing; and T(scale) in two steps (formulas::split), so that it need not be in
/// T's range.
struct ApplyArgs {
  const void* x = nullptr;         ///< [partition]
  const void* residual = nullptr;  ///< [partition], optional
  void* y = nullptr;               ///< [partition]; may be x itself
  DType dtype{};
  Partition partition{};
  const double* center = nullptr;  ///< (G)
  const double* scale = nullptr;   ///< (G)
  const double* shift = nullptr;   ///< (G), 0 when not given
  Activation activation{};
  Along along{};
  Floor floor{};
};

/// How backward finds the activation's gradient: from `mask` where given, otherwise from the sign of
/// z = ((x - center) * scale + shift) * weight + bias, recomputed exactly as apply computed it. g = dy where z > 0 (or
/// identity), else slope * dy (relu: 0).
struct Gate {
  Activation activation{};
  const std::uint8_t* mask = nullptr;
  const double* scale = nullptr;  ///< (G)
  const double* shift = nullptr;  ///< (G), 0 when not given
  Floor floor{};                  ///< where it is given, z is compared with its level
};

/// sum_g = sum of weight * g, sum_gx = sum of weight * g * (x - center), per group, with g = the gated dy; and with a
/// floor sum_level, of what the level takes of dy.
struct MomentsGradArgs {
  const void* x = nullptr;   ///< [partition]
  const void* dy = nullptr;  ///< [partition]
  DType dtype{};
  Partition partition{};
  const double* center = nullptr;  ///< (G)
  Gate gate{};
  double* sum_g = nullptr;   ///< (G)
  double* sum_gx = nullptr;  ///< (G)
  Along along{};
  double* sum_level = nullptr;  ///< (G)
};

/// The gradients of gamma and beta along groups: dweight = sum of g * ((x - center) * scale + shift), dbias = sum of g,
/// over the values of each group of along.affine, whose center, scale and shift are those of their groups of `norm`.
struct AffineGradArgs {
  const void* x = nullptr;   ///< [norm]
  const void* dy = nullptr;  ///< [norm]
  DType dtype{};
  Partition norm{};
  const double* center = nullptr;  ///< (G) of norm
  Gate gate{};                     ///< (G) of norm; scale is always given
  Along along{};                   ///< with its affine also where nothing is given
  double* dweight = nullptr;       ///< (G) of affine
  double* dbias = nullptr;         ///< (G) of affine
};

/// dx = weight * g * gain + (x - center) * power * slope + offset; dresidual = g (optional).
struct ApplyGradArgs {
  const void* x = nullptr;    ///< [partition]
  const void* dy = nullptr;   ///< [partition]
  void* dx = nullptr;         ///< [partition], optional; may be dy itself
  void* dresidual = nullptr;  ///< [partition], optional
  DType dtype{};
  Partition partition{};
  const double* center = nullptr;  ///< (G)
  Gate gate{};
  const double* gain = nullptr;    ///< (G)
  const double* slope = nullptr;   ///< (G)
  const double* offset = nullptr;  ///< (G)
  const double* power = nullptr;   ///< (G) powers of two, 1 when not given
  Along along{};
};

/// Sums over the positions of a convolution's output, for the derivatives of its statistics by its weights (docs/
/// equations.md, section 4): with p the patch of conv_input (zero-padded) that made x[n, c, position],
///   patch_sum[g][i] = sum of p_i over n and positions, for conv group g;
///   product[c][i]   = sum of (x_c - center_c) * p_i.
/// fan_in = Ci/groups * kernel; i = (ci, kd, kh, kw) in the order of a weight. Space is (D, H, W): unused leading axes
/// have extent 1, stride 1, padding 0, dilation 1, kernel 1.
struct PatchSumsArgs {
  const void* conv_input = nullptr;  ///< (N, Ci, in...) in `order`
  const void* x = nullptr;           ///< (N, C, out...) in `order`
  DType dtype{};
  Order order{};
  std::int64_t samples = 0, in_channels = 0, channels = 0, groups = 1;
  std::int64_t in[3] = {1, 1, 1}, out[3] = {1, 1, 1}, kernel[3] = {1, 1, 1};
  std::int64_t stride[3] = {1, 1, 1}, padding[3] = {0, 0, 0}, dilation[3] = {1, 1, 1};
  const double* center = nullptr;  ///< (C)
  double* patch_sum = nullptr;     ///< (groups, fan_in), 0 on entry
  double* product = nullptr;       ///< (C, fan_in), 0 on entry
};

/// y = x * P^-beta with P = k + a * (sum of the squares of the channels in the window), at each sample and position.
struct NeighboursArgs {
  const void* x = nullptr;  ///< (N, C, space) in `order`
  void* y = nullptr;        ///< like x, in other memory
  DType dtype{};
  Order order{};
  std::int64_t samples = 0, channels = 0, space = 0;
  Neighbours window{};
};

/// dx = dy * P^-beta - 2 a beta x * (sum of dy x P^(-beta-1) over the channels whose windows have this one).
struct NeighboursGradArgs {
  const void* x = nullptr;   ///< (N, C, space) in `order`
  const void* dy = nullptr;  ///< like x
  void* dx = nullptr;        ///< like x; may be dy itself
  DType dtype{};
  Order order{};
  std::int64_t samples = 0, channels = 0, space = 0;
  Neighbours window{};
};

/// product[i][j] = sum over k of a[i, k] * b[k, j], added up in double at least every 64 terms.
struct MatrixProductArgs {
  /// A matrix in memory, or its transpose: the element [i, j] is at i * row + j * column.
  struct Matrix {
    const void* data = nullptr;
    std::int64_t row = 0, column = 0;
  };
  Matrix a{}, b{};          ///< (rows, inner), (inner, columns)
  void* product = nullptr;  ///< (rows, columns), dense
  DType dtype{};            ///< of all three: f32 or f64
  std::int64_t rows = 0, inner = 0, columns = 0;
};

/// An x (N, C, space) in `order` whose channels are in groups of `width` adjacent ones, for what mixes those of a
/// group.
struct ChannelGroups {
  std::int64_t samples = 0, channels = 0, space = 0, width = 1;  ///< width divides channels
  Order order{};

  constexpr std::int64_t groups() const noexcept { return channels / width; }
  constexpr std::int64_t positions() const noexcept { return samples * space; }
};

/// Sums over all positions of products of two channels of a group, in double; [c][j] is of channel c and the j-th of
/// its group:
///   products[c][j] = sum of (x_c - center_c) * (x_j - center_j), or where sums are asked for of dy_c * (x_j -
///   center_j); sums[c]        = sum of dy_c.
struct ChannelProductsArgs {
  const void* x = nullptr;   ///< [groups]
  const void* dy = nullptr;  ///< [groups], with sums
  DType dtype{};
  ChannelGroups groups{};
  const double* center = nullptr;  ///< (C)
  double* products = nullptr;      ///< (C, width)
  double* sums = nullptr;          ///< (C), optional
};

/// Every position's channels by the matrix of their group: y_c = sum over j of matrix[c][j] * ((x_j - center_j) *
/// power) + shift_c, and where it is given + of_dy[c][j] * dy_j, in the compute type T of the dtype. As in ApplyArgs
/// what rounding the center to T does is taken back by the shift.
struct ChannelMapArgs {
  const void* x = nullptr;   ///< [groups]
  const void* dy = nullptr;  ///< [groups], with of_dy
  void* y = nullptr;         ///< [groups]; may be x or dy itself
  DType dtype{};
  ChannelGroups groups{};
  const double* center = nullptr;  ///< (C)
  const double* power = nullptr;   ///< (C / width) powers of two, normal numbers of T like their inverses
  const double* matrix = nullptr;  ///< (C, width)
  const double* of_dy = nullptr;   ///< (C, width), optional
  const double* shift = nullptr;   ///< (C), 0 when not given
};

// ---- whole halves of a call: kernels/calls.hpp, and what a window adds to them ------------------------------------

/// Before the exchange of a layer with a window that compensates: this rank's products of the entries' derivatives with
/// the change of the weights since (0 for entries that are not there), the hash of the weights, and whether they
/// changed within a batch.
struct ProductsArgs {
  Rules rules{};
  LayerState state{};
  Parameter theta{};                 ///< (C, fan_in)
  std::int64_t entries = 0;          ///< entries to write
  double* payload = nullptr;         ///< steps::Layout; written at dmean and dvar of those entries
  std::uint64_t* weights = nullptr;  ///< (2)
};

/// After the second half: this call's derivatives of mean and variance by the weights, added to the batch's, in the
/// window's open slot; centred where the batch ends. Does what state.last says. On a CPU it can run out of memory, so
/// there it comes before the last step of the call, which it takes.
struct DerivativesArgs {
  Rules rules{};
  LayerState state{};
  bool given = false;           ///< false: only what ends the batch
  PatchSumsArgs patch{};        ///< center, patch_sum and product null
  Parameter theta{};            ///< (C, fan_in)
  double* patch_sum = nullptr;  ///< (mean_rows, fan_in) scratch
  double* product = nullptr;    ///< (C, fan_in) scratch
};

struct GroupSteps;  // kernels/group_steps.hpp

struct Ops {
  const char* name;  ///< "cpu (AVX3_ZEN4)", "cuda (NVIDIA H200)"
  void (*moments)(const MomentsArgs&, Queue&);
  void (*apply)(const ApplyArgs&, Queue&);
  void (*moments_grad)(const MomentsGradArgs&, Queue&);
  void (*apply_grad)(const ApplyGradArgs&, Queue&);
  void (*neighbours)(const NeighboursArgs&, Queue&);
  void (*neighbours_grad)(const NeighboursGradArgs&, Queue&);
  void (*matrix_product)(const MatrixProductArgs&, Queue&);
  void (*channel_products)(const ChannelProductsArgs&, Queue&);
  void (*channel_map)(const ChannelMapArgs&, Queue&);
  void (*each)(const GroupSteps&, std::int64_t groups, Queue&);  ///< what operations do between these, once per group

  void (*forward_local)(ForwardArgs&, Queue&);
  void (*forward_finish)(const ForwardArgs&, const Gathered&, Queue&);
  void (*backward_local)(BackwardArgs&, Queue&);
  void (*backward_finish)(const BackwardArgs&, const Gathered&, Queue&);  ///< a lone rank gives its own sums
  void (*products)(const ProductsArgs&, Queue&);
  void (*derivatives)(const DerivativesArgs&, Queue&);
  void (*begin_batch)(const Rules&, const LayerState&, Queue&);  ///< cuts the current batch short
};

/// The CPU backend, with the best vector instructions of this machine.
const Ops& cpu_ops();

}  // namespace allnorm
