// The CUDA backend's table.
#include <cuda_runtime.h>

#include <string>

#include "kernels/cuda/kernels.hpp"

namespace allnorm {
namespace cuda {
namespace {

std::string backend_name() {
  int device = 0;
  cudaDeviceProp properties{};
  const bool found =
      cudaGetDevice(&device) == cudaSuccess && cudaGetDeviceProperties(&properties, device) == cudaSuccess;
  return found ? std::string("cuda (") + properties.name + ")" : "cuda";
}

}  // namespace
}  // namespace cuda

const Ops& cuda_ops() {
  static const std::string name = cuda::backend_name();
  static const Ops ops{.name = name.c_str(),
                       .moments = cuda::moments,
                       .apply = cuda::apply,
                       .moments_grad = cuda::moments_grad,
                       .apply_grad = cuda::apply_grad,
                       .neighbours = cuda::neighbours,
                       .neighbours_grad = cuda::neighbours_grad,
                       .matrix_product = cuda::matrix_product,
                       .channel_products = cuda::channel_products,
                       .channel_map = cuda::channel_map,
                       .each = cuda::each,
                       .forward_local = cuda::forward_local,
                       .forward_finish = cuda::forward_finish,
                       .backward_local = cuda::backward_local,
                       .backward_finish = cuda::backward_finish,
                       .products = cuda::products,
                       .derivatives = cuda::derivatives,
                       .begin_batch = cuda::begin_batch};
  return ops;
}

}  // namespace allnorm
