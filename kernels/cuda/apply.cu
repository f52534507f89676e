// y = activation(((x - center) * scale + shift) * weight + bias + residual), and the sign of y as bits.
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/map.cuh"

namespace allnorm::cuda {

namespace {

/// A thread reads 8 values and writes their byte.
template <class T>
__global__ void __launch_bounds__(map_threads)
    sign_mask_bytes(const T* y, const bool whole, const std::int64_t elements, std::uint8_t* mask) {
  const std::int64_t stride = std::int64_t{gridDim.x} * map_threads;
  for (std::int64_t byte = std::int64_t{blockIdx.x} * map_threads + threadIdx.x; byte * mask_byte < elements;
       byte += stride) {
    const auto count = static_cast<int>(min(elements - byte * mask_byte, std::int64_t{mask_byte}));
    compute_t<T> value[mask_byte];
    unpack(read_some<mask_byte>(whole, y + byte * mask_byte, count), value);
    unsigned bits = 0;
    for (int e = 0; e < mask_byte; ++e)
      if (e < count && !(value[e] <= 0)) bits |= 1u << e;
    mask[byte] = static_cast<std::uint8_t>(bits);
  }
}

}  // namespace

void apply(const ApplyArgs& args, Queue& queue) {
  if (args.partition.elements() == 0) return;
  run_apply<false>(queue, args, nullptr, GivenAffine{args.center, args.scale, args.shift});
}

void sign_mask(const SignMaskArgs& args, Queue& queue) {
  if (args.elements == 0) return;
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto* y = static_cast<const T*>(args.y);
    const std::int64_t step = std::int64_t{map_threads} * mask_byte;
    const auto& device = properties_of(queue);
    const std::int64_t most =
        std::int64_t{device.multiProcessorCount} * device.maxThreadsPerMultiProcessor / map_threads;
    launch(queue, std::min((args.elements + step - 1) / step, most), map_threads, 0, sign_mask_bytes<T>, y,
           is_vector_aligned(y), args.elements, args.mask);
  });
}

}  // namespace allnorm::cuda
