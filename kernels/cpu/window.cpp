// The large arrays of Cross-Iteration BN's window on the CPU: products of derivatives with changes of weights before
// the exchange, and the derivatives of a call after it.
#include <algorithm>
#include <type_traits>

#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"

namespace allnorm::cpu {

namespace {

/// Calls f with the window's arrays of derivatives as pointers to their type: dmean, dvar, weight.
template <class F>
void visit_arrays(const Ring& ring, const F& f) {
  if (ring.wide)
    f(static_cast<double*>(ring.dmean), static_cast<double*>(ring.dvar), static_cast<double*>(ring.weight));
  else
    f(static_cast<float*>(ring.dmean), static_cast<float*>(ring.dvar), static_cast<float*>(ring.weight));
}

/// <derivative, weights now - weights then>. Sixteen partial sums: independent, so that the compiler can keep them in
/// vectors.
template <class T>
double product(const T* derivative, const double* now, const T* then, std::int64_t size) noexcept {
  constexpr std::int64_t lanes = 16;
  double sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= size; i += lanes)
    for (std::int64_t j = 0; j < lanes; ++j)
      sums[j] += static_cast<double>(derivative[i + j]) * (now[i + j] - static_cast<double>(then[i + j]));
  for (; i < size; ++i) sums[0] += static_cast<double>(derivative[i]) * (now[i] - static_cast<double>(then[i]));
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

}  // namespace

void products(const ProductsArgs& args, Queue& queue) {
  const LayerState& state = args.state;
  const Ring& ring = state.ring;
  const Counters& now = state.now();
  const std::int64_t C = state.channels, fan_in = ring.fan_in;
  const steps::Layout layout{C};
  std::vector<double> theta(static_cast<std::size_t>(C * fan_in));
  args.weights[0] = args.weights[1] = 0;
  visit_arrays(ring, [&](auto*, auto*, auto* weight) {
    using T = std::remove_pointer_t<decltype(weight)>;
    const auto* open = weight + (now.newest + 1) % ring.slots * C * fan_in;
    for (std::int64_t i = 0; i < C * fan_in; ++i) {
      const double value = args.theta[i];
      theta[static_cast<std::size_t>(i)] = value;
      args.weights[0] += hash_part(value, static_cast<std::uint64_t>(i));
      if (now.derivatives != 0 && static_cast<T>(value) != open[i]) args.weights[1] = 1;
    }
  });
  if (args.payload == nullptr) return;
  const std::int64_t used = now.batches < args.rules.burn_in ? 0 : now.entries;
  visit_arrays(ring, [&](auto* dmean, auto* dvar, auto* weight) {
    for_items(queue, args.entries * C, max_of(1, task_values / max_of(1, fan_in)), [&](std::int64_t item) {
      const std::int64_t entry = item / C, c = item % C;
      double mean = 0, var = 0;
      if (entry < used) {
        const std::int64_t slot = ring.slot(now, entry), row = slot * C + c;
        const double* current = theta.data() + c * fan_in;
        mean = product(dmean + (slot * ring.mean_rows + ring.mean_row(c, C)) * fan_in, current, weight + row * fan_in,
                       fan_in);
        var = product(dvar + row * fan_in, current, weight + row * fan_in, fan_in);
      }
      args.payload[layout.dmean(entry, c)] = mean;
      args.payload[layout.dvar(entry, c)] = var;
    });
  });
}

namespace {

void write_derivatives(const DerivativesArgs& args, const Turn& turn, Queue& queue) {
  const LayerState& state = args.state;
  const Ring& ring = state.ring;
  const std::int64_t C = state.channels, fan_in = ring.fan_in, rows = ring.mean_rows;
  if (fan_in == 0) return;
  if (args.given && turn.derives) {  // all that can fail comes before what is written to the window
    std::fill_n(args.patch_sum, rows * fan_in, 0.0);
    std::fill_n(args.product, C * fan_in, 0.0);
    PatchSumsArgs call = args.patch;
    call.center = ring.center;
    call.patch_sum = args.patch_sum;
    call.product = args.product;
    patch_sums(call, queue);
  }
  visit_arrays(ring, [&](auto* dmean, auto* dvar, auto* weight) {
    using T = std::remove_pointer_t<decltype(dmean)>;
    T* mean = dmean + turn.slot * rows * fan_in;
    T* square = dvar + turn.slot * C * fan_in;
    T* theta = weight + turn.slot * C * fan_in;
    if (args.given && turn.derives) {
      const auto move = [&](T* to, const double* values, std::int64_t size, double scale) {
        for (std::int64_t i = 0; i < size; ++i) {
          const double before = turn.starts ? 0 : static_cast<double>(to[i]);
          to[i] = static_cast<T>(before + turn.f * (values[i] * scale - before));
        }
      };
      move(mean, args.patch_sum, rows * fan_in, 1 / turn.count);
      move(square, args.product, C * fan_in, 2 / turn.count);
      if (turn.starts)
        for (std::int64_t i = 0; i < C * fan_in; ++i) theta[i] = static_cast<T>(args.theta[i]);
    }
    for (std::int64_t c = 0; turn.enters && c < C; ++c) {
      const double twice = 2 * (ring.mean[turn.slot * C + c] - ring.center[c]);
      const T* of_mean = mean + ring.mean_row(c, C) * fan_in;
      for (std::int64_t i = 0; twice != 0 && i < fan_in; ++i)
        square[c * fan_in + i] =
            static_cast<T>(static_cast<double>(square[c * fan_in + i]) - twice * static_cast<double>(of_mean[i]));
    }
  });
}

}  // namespace

/// With `given` the last of a call: the state advances here, after all that can fail. On a GPU nothing fails there, and
/// the second half advances it.
void derivatives(const DerivativesArgs& args, Queue& queue) {
  const Turn turn = *args.state.last;
  write_derivatives(args, turn, queue);
  if (args.given) steps::advance(args.rules, args.state, turn, true);
}

}  // namespace allnorm::cpu
