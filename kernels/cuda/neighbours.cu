// Local Response Normalization, a thread per value. The values of a window are read by as many threads, which the
// caches serve: neighbouring threads have neighbouring positions, or channels.
#include "allnorm/dtype.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vectors.cuh"
#include "kernels/neighbours.hpp"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::cuda {
namespace {

constexpr int window_threads = 256;

/// Where the channels lie, and from which P on the compute type's range does not do.
struct Channels {
  Neighbours window{};
  std::int64_t channels = 0, stride = 0, values = 0;
  double narrow = 0;

  template <class Args>
  explicit Channels(const Args& a)
      : window(a.window),
        channels(a.channels),
        stride(a.order == Order::channels_first ? a.space : 1),
        values(a.samples * a.channels * a.space),
        narrow(formulas::narrow_power(a.window)) {}
};

/// The values around the one at `i` in a window of the channel, or of the transposed one.
struct Around {
  std::int64_t first, last;  // in memory, `stride` apart

  __device__ Around(const Channels& c, std::int64_t i, std::int64_t behind, std::int64_t ahead) {
    const std::int64_t channel = i / c.stride % c.channels, to_end = c.channels - 1 - channel;
    first = i - (behind < channel ? behind : channel) * c.stride;
    last = i + (ahead < to_end ? ahead : to_end) * c.stride;
  }
};

template <class P, class T>
__device__ P power(const T* x, const Channels& c, const Around& around) {
  P squares = 0;
  for (std::int64_t j = around.first; j <= around.last; j += c.stride) {
    const auto value = static_cast<P>(widen(x[j]));
    squares += value * value;  // rounded as on a CPU: the outputs have the same bits
  }
  return fma(static_cast<P>(c.window.a), squares, static_cast<P>(c.window.k));
}

/// Calls use(P of the value at i), in the compute type where that has the range, otherwise in double.
template <class T, class Use>
__device__ void with_power(const T* x, const Channels& c, std::int64_t i, const Use& use) {
  using C = compute_t<T>;
  const Around around(c, i, c.window.behind, c.window.ahead);
  const C p = power<C>(x, c, around);
  if (std::is_same_v<C, double> || p <= c.narrow)
    use(p);
  else
    use(power<double>(x, c, around));
}

template <class T>
__global__ void __launch_bounds__(window_threads)
    neighbours_kernel(const T* x, T* y, const __grid_constant__ Channels c) {
  const std::int64_t i = std::int64_t{blockIdx.x} * window_threads + threadIdx.x;
  if (i >= c.values) return;
  with_power(x, c, i, [&]<class P>(P p) {
    const P value = static_cast<P>(widen(x[i])) / formulas::raised(p, c.window.beta);
    y[i] = narrow<T>(static_cast<compute_t<T>>(value));
  });
}

/// h = dy P^-beta and w = sqrt(a / P) of every value.
template <class T, class C = compute_t<T>>
__global__ void __launch_bounds__(window_threads)
    shares_kernel(const T* x, const T* dy, C* h, C* w, const __grid_constant__ Channels c) {
  const std::int64_t i = std::int64_t{blockIdx.x} * window_threads + threadIdx.x;
  if (i >= c.values) return;
  with_power(x, c, i, [&]<class P>(P p) {
    h[i] = static_cast<C>(static_cast<P>(widen(dy[i])) / formulas::raised(p, c.window.beta));
    w[i] = static_cast<C>(static_cast<P>(std::sqrt(c.window.a)) / std::sqrt(p));
  });
}

/// dx_j = h_j - 2 beta * (sum of h (x w) (x_j w) over the channels whose windows have j): |x w| is at most 1.
template <class T, class C = compute_t<T>>
__global__ void __launch_bounds__(window_threads)
    neighbours_grad_kernel(const T* x, const C* h, const C* w, T* dx, const __grid_constant__ Channels c) {
  const std::int64_t i = std::int64_t{blockIdx.x} * window_threads + threadIdx.x;
  if (i >= c.values) return;
  const Around around(c, i, c.window.ahead, c.window.behind);
  const C value = widen(x[i]);
  C sum = 0;
  for (std::int64_t j = around.first; j <= around.last; j += c.stride)
    sum = fma(h[j], (widen(x[j]) * w[j]) * (value * w[j]), sum);
  dx[i] = narrow<T>(fma(static_cast<C>(-2 * c.window.beta), sum, h[i]));
}

std::int64_t blocks_of(const Channels& c) { return (c.values + window_threads - 1) / window_threads; }

}  // namespace

void neighbours(const NeighboursArgs& args, Queue& queue) {
  const Channels c(args);
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    launch(queue, blocks_of(c), window_threads, 0, neighbours_kernel<T>, static_cast<const T*>(args.x),
           static_cast<T*>(args.y), c);
  });
}

void neighbours_grad(const NeighboursGradArgs& args, Queue& queue) {
  const Channels c(args);
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    using C = compute_t<T>;
    const auto* x = static_cast<const T*>(args.x);
    Buffer<C> shares(static_cast<std::size_t>(2 * c.values), queue, Fill::none);  // h, w
    C *const h = shares.data(), *const w = h + c.values;
    launch(queue, blocks_of(c), window_threads, 0, shares_kernel<T, C>, x, static_cast<const T*>(args.dy), h, w, c);
    launch(queue, blocks_of(c), window_threads, 0, neighbours_grad_kernel<T, C>, x, static_cast<const C*>(h),
           static_cast<const C*>(w), static_cast<T*>(args.dx), c);
  });
}

}  // namespace allnorm::cuda
