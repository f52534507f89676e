// The product of two matrices, tile by tile of the result.
#include <algorithm>
#include <vector>

#include "allnorm/dtype.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/tile_products.hpp"

namespace allnorm::cpu {

namespace {

constexpr std::int64_t tile_rows = 64, tile_width = 128;

/// One thread's tile: what it is made of is laid out dense, with zeros beyond the matrices.
template <class C>
class ProductTile {
 public:
  void make(const MatrixProductArgs& args, std::int64_t row, std::int64_t column) {
    const std::int64_t rows = min_of(tile_rows, args.rows - row), columns = min_of(tile_width, args.columns - column);
    std::fill(sums_.begin(), sums_.end(), 0.0);
    for (std::int64_t k = 0; k < args.inner; k += product_terms) {
      const std::int64_t terms = min_of(product_terms, args.inner - k);
      lay_out(args.a, row, rows, k, terms, terms, a_.data());
      lay_out(args.b, k, terms, column, columns, tile_width, b_.data());
      tile_products(a_.data(), rows, b_.data(), terms, tile_width, some_.data());
      for (std::size_t i = 0; i < static_cast<std::size_t>(rows * tile_width); ++i)
        sums_[i] += static_cast<double>(some_[i]);
    }
    for (std::int64_t r = 0; r < rows; ++r)
      std::transform(sums_.begin() + r * tile_width, sums_.begin() + r * tile_width + columns,
                     static_cast<C*>(args.product) + (row + r) * args.columns + column,
                     [](double sum) { return static_cast<C>(sum); });
  }

 private:
  // Rows `pitch` apart; along memory, whichever way the matrix lies in it.
  static void lay_out(const MatrixProductArgs::Matrix& matrix, std::int64_t row, std::int64_t rows, std::int64_t column,
                      std::int64_t columns, std::int64_t pitch, C* to) {
    const C* from = static_cast<const C*>(matrix.data) + row * matrix.row + column * matrix.column;
    if (matrix.column == 1)
      for (std::int64_t r = 0; r < rows; ++r) std::copy_n(from + r * matrix.row, columns, to + r * pitch);
    else
      for (std::int64_t j = 0; j < columns; ++j)
        for (std::int64_t r = 0; r < rows; ++r) to[r * pitch + j] = from[r * matrix.row + j * matrix.column];
  }

  std::vector<C> a_ = std::vector<C>(tile_rows * product_terms), b_ = std::vector<C>(product_terms * tile_width),
                 some_ = std::vector<C>(tile_rows * tile_width);
  std::vector<double> sums_ = std::vector<double>(tile_rows * tile_width);
};

}  // namespace

void matrix_product(const MatrixProductArgs& args, Queue& queue) {
  const std::int64_t across = ceil_div(args.columns, tile_width), tiles = ceil_div(args.rows, tile_rows) * across;
  const auto run = [&]<class C>(std::type_identity<C>) {
    for_tasks(queue, tiles, [&](std::int64_t tile) {
      ProductTile<C>().make(args, tile / across * tile_rows, tile % across * tile_width);
    });
  };
  if (args.dtype == DType::f64)
    run(std::type_identity<double>{});
  else
    run(std::type_identity<float>{});
}

}  // namespace allnorm::cpu
