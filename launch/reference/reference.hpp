// The reference of the tests and of `allnorm verify`: normalizations from their definitions, in plain loops, sharing no
// code with the library but the names of its options.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "allnorm/options.hpp"

namespace reference {

/// An extent or a place in one, and that as the standard's containers take it.
using Int = std::int64_t;
constexpr std::size_t at(Int i) { return static_cast<std::size_t>(i); }

/// Sums and statistics are kept with 64 bits of mantissa, so that the definitions can be written down as they stand
/// (E[x^2] - E[x]^2 included, where a definition says so) and still be right to the last bits of a double.
using Real = long double;
using Reals = std::vector<Real>;
using Doubles = std::vector<double>;

/// A dense tensor in logical order (N, C, space...), the last axis fastest.
struct Array {
  std::vector<std::int64_t> shape;
  Doubles v;
};
/// A sum, that of the sizes of its terms, to which what rounding may do to it is in proportion, and what it goes by per
/// relative error of the statistics that it is made with.
struct Sum {
  Real value = 0, size = 0, by_statistics = 0;
  void add(Real term) { add(term, std::abs(term), std::abs(term)); }
  /// A term that comes of larger ones.
  void add(Real term, Real own_size, Real by) { value += term, size += own_size, by_statistics += by; }
  void add(Real factor, const Sum& of) {
    add(factor * of.value, std::abs(factor) * of.size, std::abs(factor) * of.by_statistics);
  }
};
/// Sums.
struct Values {
  explicit Values(std::size_t count = 0) : v(count), sizes(count), by_statistics(count) {}
  void set(std::size_t i, const Sum& sum) {
    v[i] = static_cast<double>(sum.value);
    sizes[i] = static_cast<double>(sum.size);
    by_statistics[i] = static_cast<double>(sum.by_statistics);
    if (!(sizes[i] <= terms)) terms = sizes[i];
  }
  Doubles v, sizes, by_statistics;
  double terms = 0;  // the largest of the sizes that were set
};
/// One array per rank of a group. C and space agree; N may differ and may be 0.
using Ranks = std::vector<Array>;

/// The product of the extents.
std::int64_t elements(const std::vector<std::int64_t>& shape);
/// An array of zeros.
Array zeros(std::vector<std::int64_t> shape);
/// The arrays behind one another along axis 0.
Array concatenate(const Ranks& parts);

// ---------------------------------------------------------------------------------------------------- convolution

/// A convolution (cross-correlation) with zero padding.
using Conv = allnorm::Convolution;
/// input (N, Ci, space...), weight (C, Ci/groups, kernel...) -> (N, C, space...); 0 to 3 space axes (0: a linear
/// layer).
Array convolve(const Array& input, const Array& weight, const Conv& conv);

/// sum_p (C, fan_in): the sum over samples and positions of the input patch that channel c sees;
/// sum_xp (C, fan_in): that of x_c times the patch. Added to what the two vectors hold.
void add_patch_sums(const Array& input, const Array& x, const std::vector<std::int64_t>& weight_shape, const Conv& conv,
                    Reals& sum_p, Reals& sum_xp);

// -------------------------------------------------------------------- the batch-statistics family (equations 1, 0-5,
// 8)

/// The whole composition; with the defaults it is BN.
using allnorm::NormOptions, allnorm::Ramp, allnorm::RampPoint;
using BatchOptions = NormOptions;
using allnorm::ActivationKind, allnorm::EpsPlace, allnorm::RenormVariant, allnorm::Guard, allnorm::RunningSource,
    allnorm::Weighting, allnorm::RunningUpdate;

/// Statistics of one call, of one batch of mini-batches, or of one entry of the window, over all ranks of the group.
struct Statistics {
  std::int64_t count = 0;  // values per channel, M
  Reals mean, var;         // (C), var biased
  Reals dmean, dsecond;    // (C, fan_in): d mean/d theta_c and d E[x^2]/d theta_c; empty without compensation
  Doubles theta;           // (C, fan_in): the weights that made x; empty without compensation
};

/// Everything that a call may change.
struct BatchState {
  Doubles running_mean, running_var, running_std;  // (C); running_std is used with renorm, variant paper
  std::int64_t num_batches_tracked = 0;            // updates of the running statistics
  std::deque<Statistics> window;                   // whole batches, newest first, at most options.window - 1
  std::vector<Statistics> minibatches;             // the non-empty mini-batches of the batch under way
  std::int64_t t = 0;                              // mini-batches of the batch under way, empty ones included
  std::int64_t batches = 0;                        // training calls (batches) so far that held a value; burn_in's clock
  std::int64_t counted = 0;                        // training calls so far that held a value; the clock of ramps
};

struct Layer {
  BatchOptions options;
  Doubles gamma, beta;  // (C)
  BatchState state;
};
/// gamma 1, beta 0, running mean 0, running variance and deviation 1.
Layer make_layer(std::int64_t channels, const BatchOptions& options = {});

/// What one call reads, per rank. residual: like x, or no arrays. conv_input (N, Ci, space...) and conv_weight are
/// read when window > 1 and compensate.
struct Inputs {
  Ranks x, residual, conv_input;
  Array conv_weight;
};

/// What one call gives.
struct Result {
  Ranks y;
  Ranks pre;               // before the activation
  std::int64_t count = 0;  // M: values per channel of this call, all ranks
  Doubles mean, var;  // (C): normalized with, before r and d; without eps. 0 when there is nothing to normalize with
  Doubles inv;        // (C): one over what values are divided by: sqrt(var + eps), sqrt(var) + eps or running_std
  Doubles r, d;       // (C): 1 and 0 without renorm
  Doubles a;          // (C): share of this call's own mean and second moment in mean and E[x^2]
  BatchState state;   // after the call
};

/// One call that leaves the layer as it is; the new state is in the result. With `frozen`, r and d are that result's
/// instead of being computed: the function of the inputs whose derivative `backward` gives.
Result evaluate(const Layer& layer, const Inputs& inputs, const Result* frozen = nullptr);
/// One call; the layer takes the new state.
Result forward(Layer& layer, const Inputs& inputs);
/// Running statistics alone, whatever options.training says.
Result infer(const Layer& layer, const Inputs& inputs);
/// Ends a batch of mini-batches early: the running statistics (rule `last`) and the window take what it has.
void begin_batch(Layer& layer);

struct Gradients {
  Ranks dx, dresidual;
  std::vector<Doubles> dgamma, dbeta;  // one (C) per rank, sums over that rank's data
};
/// `result` is what evaluate or forward gave for these inputs.
Gradients backward(const Layer& layer, const Inputs& inputs, const Result& result, const Ranks& dy);

// ------------------------------------------------------------- statistics within a sample (equations 2, sections 1-3)

/// Sets of elements with a mean and a variance each, and an affine part.
struct RowsResult {
  Array y;
  Doubles mean, rstd;  // one per set, in the order of the sets
  Doubles var;         // biased
};
struct RowsGradients {
  Array dx;
  Doubles dgamma, dbeta;
};
/// For each element of x the number of the set that it is normalized with, and of the gamma and beta that it takes.
struct Sets {
  std::vector<std::int64_t> set, affine;  // (elements)
  std::int64_t sets = 0, affines = 0;
};
/// One set per leading index over the trailing `axes` axes; gamma and beta per element of these.
Sets layer_norm_sets(const std::vector<std::int64_t>& shape, int axes);
/// One set per sample and block of C/groups channels; gamma and beta per channel. `groups` divides C.
Sets group_norm_sets(const std::vector<std::int64_t>& shape, std::int64_t groups);
/// group_norm with one channel per group.
Sets instance_norm_sets(const std::vector<std::int64_t>& shape);

/// Empty gamma means 1, empty beta 0.
RowsResult rows_forward(const Array& x, const Sets& sets, const Doubles& gamma, const Doubles& beta, double eps);
RowsGradients rows_backward(const Array& x, const Sets& sets, const Doubles& gamma, const Array& dy, double eps);
/// One set per sample and position over the channels; gamma and beta per position.
Sets positional_norm_sets(const std::vector<std::int64_t>& shape);
/// As rows_forward and rows_backward, with Bessel's factor where `unbiased`; and with gradients by the mean and the
/// deviation of every set, where these are not empty.
RowsResult positional_forward(const Array& x, const Sets& sets, const Doubles& gamma, const Doubles& beta, double eps,
                              bool unbiased);
RowsGradients positional_backward(const Array& x, const Sets& sets, const Doubles& gamma, const Array& dy,
                                  const Doubles& grad_mean, const Doubles& grad_std, double eps, bool unbiased);

/// filter_response_norm's parameters, (C) each or empty: 1, 0, no threshold and 0.
struct Response {
  Doubles gamma, beta, tau, eps_learned;
  double eps = 1e-6;
  allnorm::Tie tie = allnorm::Tie::first;
};
struct ResponseGradients {
  Array dx;
  Doubles dgamma, dbeta, dtau, deps;
};
/// Sets are instance_norm's. `threshold`: otherwise y is returned as it is before it.
Array response_forward(const Array& x, const Response& layer, bool threshold = true);
/// `decides`: y as the threshold finds it, where rounding may put it on the other side; empty: the oracle's own.
ResponseGradients response_backward(const Array& x, const Response& layer, const Array& dz,
                                    const Doubles& decides = {});

/// As rows_forward, with a root mean square instead of mean and deviation: mean is 0 and nothing is centred.
RowsResult rms_forward(const Array& x, const Sets& sets, const Doubles& gamma, double eps, const Doubles& beta = {});
RowsGradients rms_backward(const Array& x, const Sets& sets, const Doubles& gamma, const Array& dy, double eps);
/// instance_norm's running statistics after a call: the plain average over the samples, variances unbiased.
void update_instance_running(const RowsResult& result, const std::vector<std::int64_t>& shape, double momentum,
                             Doubles& running_mean, Doubles& running_var);

}  // namespace reference
