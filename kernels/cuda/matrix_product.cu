// The product of two matrices, a tile of the result per block. On the FP32 pipe: in the tensor cores TF32 would cost 13
// bits. What bounds it are the loads from shared memory, one for each fused multiply-add and a half.
#include <type_traits>

#include "allnorm/dtype.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"

namespace allnorm::cuda {
namespace {

constexpr int product_tile = 32, product_threads = 256;                  // rows, columns and terms of a tile
constexpr int own_rows = product_tile * product_tile / product_threads;  // of a thread, in one column
constexpr int passes_per_sum = 2;                                        // up to 64 products are added in the type

template <class C>
using ProductTile = C[product_tile][product_tile + 1];

/// The tile at [row, column], zeros beyond the matrix; neighbouring threads read neighbouring memory.
template <class C>
__device__ void load_tile(const MatrixProductArgs::Matrix& m, std::int64_t row, std::int64_t rows, std::int64_t column,
                          std::int64_t columns, ProductTile<C>& to) {
  for (int k = static_cast<int>(threadIdx.x); k < product_tile * product_tile; k += product_threads) {
    const int fast = k % product_tile, slow = k / product_tile;
    const int i = m.column == 1 ? slow : fast, j = m.column == 1 ? fast : slow;
    const bool inside = row + i < rows && column + j < columns;
    to[i][j] = inside ? static_cast<const C*>(m.data)[(row + i) * m.row + (column + j) * m.column] : C{0};
  }
}

template <class C>
__global__ void __launch_bounds__(product_threads)
    matrix_product_kernel(const __grid_constant__ MatrixProductArgs args, const std::int64_t across) {
  ALLNORM_SHARED(a, ProductTile<C>);
  ALLNORM_SHARED(b, ProductTile<C>);
  const std::int64_t row = blockIdx.x / across * product_tile, column = blockIdx.x % across * product_tile;
  const int j = static_cast<int>(threadIdx.x) % product_tile;
  const int first = static_cast<int>(threadIdx.x) / product_tile * own_rows;
  C some[own_rows] = {};
  double sums[own_rows] = {};
  const auto flush = [&] {
    for (int r = 0; r < own_rows; ++r) {
      sums[r] += static_cast<double>(some[r]);
      some[r] = 0;
    }
  };
  int passes = 0;
  for (std::int64_t k = 0; k < args.inner; k += product_tile) {
    load_tile<C>(args.a, row, args.rows, k, args.inner, a);
    load_tile<C>(args.b, k, args.inner, column, args.columns, b);
    __syncthreads();
    for (int t = 0; t < product_tile; ++t)
      for (int r = 0; r < own_rows; ++r) some[r] = fma(a[first + r][t], b[t][j], some[r]);
    if (++passes % passes_per_sum == 0) flush();
    __syncthreads();
  }
  flush();
  for (int r = 0; r < own_rows; ++r)
    if (row + first + r < args.rows && column + j < args.columns)
      static_cast<C*>(args.product)[(row + first + r) * args.columns + column + j] = static_cast<C>(sums[r]);
}

}  // namespace

void matrix_product(const MatrixProductArgs& args, Queue& queue) {
  const std::int64_t across = (args.columns + product_tile - 1) / product_tile;
  const std::int64_t blocks = (args.rows + product_tile - 1) / product_tile * across;
  if (args.dtype == DType::f64)
    launch(queue, blocks, product_threads, 0, matrix_product_kernel<double>, args, across);
  else
    launch(queue, blocks, product_threads, 0, matrix_product_kernel<float>, args, across);
}

}  // namespace allnorm::cuda
