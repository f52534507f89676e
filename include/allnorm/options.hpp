// The attributes of a normalization layer, as values.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "allnorm/sync.hpp"

namespace allnorm {

/// The activations that a layer can apply itself.
enum class ActivationKind : std::uint8_t { identity, relu, leaky_relu };
/// What is applied after gamma, beta and the residual. `slope` belongs to leaky_relu and is >= 0.
struct Activation {
  ActivationKind kind = ActivationKind::identity;  ///< which
  double slope = 0.01;                             ///< of values below 0
};

/// Who takes the gradient of a value that is at its threshold.
enum class Tie : std::uint8_t {
  first,   ///< the value, the first operand of the maximum
  second,  ///< the threshold
  half,    ///< both, half of it each
};

/// What values are divided by: sqrt(var + eps), or sqrt(var) + eps.
enum class EpsPlace : std::uint8_t { inside, outside };
/// What Batch Renormalization keeps an average of.
enum class RenormVariant : std::uint8_t {
  paper,  ///< the moving average is of sigma, kept as running_std (Batch Renormalization, algorithm 1)
  var,    ///< the moving average is of the variance, kept as PyTorch keeps it
};
/// How mini-batches of a batch count: each the same, or by its number of values.
enum class Weighting : std::uint8_t { uniform, count };
/// Which mini-batches of a batch move the running statistics.
enum class RunningUpdate : std::uint8_t { last, every };
/// What a past variance below 0 does, as compensation may make one.
enum class Guard : std::uint8_t {
  clamp,  ///< a past second moment below its squared mean counts as equal to it (Cross-Iteration BN, section 3.3)
  drop,   ///< the past iteration leaves the average of that channel (the authors' code)
};
/// The norm without gamma and beta under maps of them (SPADE).
enum class Base : std::uint8_t { batch_norm, instance_norm };
/// What the running statistics follow: this iteration's, or the window's.
enum class RunningSource : std::uint8_t { current, window };
/// What a training call does whose input is not finite somewhere, on any rank of the group.
enum class NonFinite : std::uint8_t {
  propagate,    ///< the running statistics and the window do without the channels that it hit
  fail,         ///< it throws non_finite and changes nothing; on a GPU the layer's next call throws it
  skip_update,  ///< no state of the layer changes
};
/// What the ranks of a group hold (Switchable Normalization): samples of their own, or parts of the same ones.
enum class Shard : std::uint8_t { batch, space };
/// Whose window of `size` channels, and whose alpha (Local Response Normalization).
enum class WindowConvention : std::uint8_t {
  pytorch,  ///< n/2 channels behind and (n-1)/2 ahead; alpha/n
  onnx,     ///< (n-1)/2 behind and n/2 ahead; alpha/n
  caffe,    ///< (n-1)/2 on both sides of an odd n; alpha/n
  alexnet,  ///< n/2 on both sides; alpha as it is
};
/// What a vector of length |x| is divided by (Cosine Normalization).
enum class EpsMode : std::uint8_t {
  add,  ///< |x| + eps
  max,  ///< max(|x|, eps)
  sq,   ///< sqrt(|x|^2 + eps)
};

/// A piecewise linear function of the number of training calls made: points in ascending order of call, constant before
/// the first and after the last. Empty: a constant given elsewhere.
struct RampPoint {
  std::int64_t call = 0;  ///< number of training calls before
  double value = 0;       ///< there
  /// The same call and value.
  friend bool operator==(const RampPoint&, const RampPoint&) = default;
};
using Ramp = std::vector<RampPoint>;  ///< see RampPoint
/// The value of `ramp` at `call`; `constant` for an empty ramp.
double ramp_value(const Ramp& ramp, std::int64_t call, double constant) noexcept;

/// The convolution (or linear layer) before the norm. One value, or one per space axis.
struct Convolution {
  std::vector<std::int64_t> stride{1};    ///< from one output to the next
  std::vector<std::int64_t> padding{0};   ///< zeros on both sides
  std::vector<std::int64_t> dilation{1};  ///< between taps
  std::int64_t groups = 1;                ///< of channels
};

/// The options of one fixed size each, which kernels get as they are.
struct PlainOptions {
  double eps = 1e-5;                      ///< added to the variance, or to what eps_place says
  EpsPlace eps_place = EpsPlace::inside;  ///< where eps is added
  bool unbiased = false;    ///< values are divided by the unbiased deviation; in layers without running statistics
  double momentum = 0.1;    ///< running <- (1-momentum)*running + momentum*new
  bool cumulative = false;  ///< momentum = 1 / number of updates: a plain average
  bool training = true;     ///< false: normalize with the running statistics; nothing is exchanged, no state changes
  bool unbiased_running_var = true;  ///< the variance is multiplied by n/(n-1) on its way there
  bool track = false;                ///< instance_norm keeps running statistics
  Activation activation{};           ///< what follows gamma, beta and the residual
  Tie tie = Tie::first;              ///< filter_response_norm: at the threshold
  Sync sync{};                       ///< whose statistics

  // Batch Renormalization
  bool renorm = false;                           ///< values are corrected towards the running statistics
  RenormVariant variant = RenormVariant::paper;  ///< what is averaged
  double r_max = 3;                              ///< r is clipped to [1/r_max, r_max]
  double d_max = 5;                              ///< d is clipped to [-d_max, d_max]

  // Cross-mini-batch BN (CmBN)
  std::int64_t minibatches = 1;                 ///< calls of one batch, which share statistics
  Weighting weighting = Weighting::uniform;     ///< how they count
  RunningUpdate running = RunningUpdate::last;  ///< which of them move the running statistics

  // Cross-Iteration BN
  std::int64_t window = 1;                                ///< iterations in the statistics, this one included
  std::int64_t burn_in = 0;                               ///< first training calls that use their own statistics alone
  bool fill_in_burn_in = false;                           ///< these calls enter the window
  Guard guard = Guard::clamp;                             ///< what a past variance below 0 does
  bool compensate = true;                                 ///< past statistics are moved to the present weights
  RunningSource running_source = RunningSource::current;  ///< what the running statistics follow

  std::int64_t groups = 32;                    ///< group_norm: of channels
  NonFinite nonfinite = NonFinite::propagate;  ///< what input that is not finite does

  /// sigma (true) or the variance (false) is what the running statistics keep.
  constexpr bool keeps_std() const noexcept { return renorm && variant == RenormVariant::paper; }
  /// The window's statistics are moved to the present weights.
  constexpr bool compensates() const noexcept { return compensate && window > 1; }
};

/// Defaults are batch_norm's; catalogue.hpp has those of every other layer.
struct NormOptions : PlainOptions {
  Ramp r_max_ramp{};                             ///< where given, in place of r_max; saved with the layer's state
  Ramp d_max_ramp{};                             ///< the same of d_max
  Convolution convolution{};                     ///< what a window that compensates must know of the layer in front
  std::vector<std::int64_t> normalized_shape{};  ///< layer_norm's; empty: all axes but the first
  std::int64_t dim = 0;                          ///< the axis of a weight's rows; negative: from the end
  double alpha = 1;  ///< adaptive_instance_norm: how much of the style, the rest is the input; local_response_norm's
  Base base = Base::batch_norm;        ///< spade: the norm under the maps
  bool plus_one = true;                ///< gamma's map is added to 1
  bool unbiased_instance_var = false;  ///< switchable_norm: all three variances are made of unbiased ones
  Shard shard = Shard::batch;          ///< switchable_norm
  // local_response_norm, with alpha: x * (k + alpha * squares)^-beta
  std::int64_t size = 5;                                    ///< channels of a window
  double beta = 0.75;                                       ///< the power
  double k = 1;                                             ///< added to the squares
  WindowConvention convention = WindowConvention::pytorch;  ///< which channels are in a window
  // cosine_norm, with eps
  bool centred = false;             ///< vectors lose their means first: correlations
  EpsMode eps_mode = EpsMode::add;  ///< where eps is added
  std::int64_t group_size = 16;     ///< channels that are decorrelated with each other
  std::int64_t iterations = 5;      ///< iterative_norm
};

}  // namespace allnorm
