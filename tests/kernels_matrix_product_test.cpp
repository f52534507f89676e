// Products of matrices, and of their transposes, against plain loops.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <type_traits>

#include "backend.hpp"
#include "cases.hpp"
#include "kernels/ops.hpp"

namespace kernels_matrix_product_test {
namespace {

using namespace allnorm;

template <class T>
backend::Array<T> drawn(cases::Random& random, std::int64_t size) {
  backend::Array<T> values(static_cast<std::size_t>(size));
  for (T& value : values) value = static_cast<T>(random.normal());
  return values;
}

template <class T>
class MatrixProduct : public testing::Test {};
using Types = testing::Types<double, float>;
TYPED_TEST_SUITE(MatrixProduct, Types);

TYPED_TEST(MatrixProduct, IsThatOfPlainLoops) {
  using T = TypeParam;
  struct Sizes {
    std::int64_t rows, inner, columns;
  };
  for (const auto& [rows, inner, columns] :
       {Sizes{1, 1, 1}, Sizes{3, 5, 4}, Sizes{67, 129, 133}, Sizes{33, 64, 32}, Sizes{2, 0, 3}, Sizes{0, 3, 2}})
    for (const bool a_is_transposed : {false, true})
      for (const bool b_is_transposed : {false, true}) {
        SCOPED_TRACE(std::to_string(rows) + ", " + std::to_string(inner) + ", " + std::to_string(columns));
        cases::Random random(3);
        const auto a = drawn<T>(random, rows * inner), b = drawn<T>(random, inner * columns);
        auto product = drawn<T>(random, rows * columns);
        const MatrixProductArgs::Matrix as_is{a.data(), inner, 1}, turned{a.data(), 1, rows};
        const MatrixProductArgs::Matrix b_as_is{b.data(), columns, 1}, b_turned{b.data(), 1, inner};
        Queue queue = backend::queue(2);
        queue.ops().matrix_product({.a = a_is_transposed ? turned : as_is,
                                    .b = b_is_transposed ? b_turned : b_as_is,
                                    .product = product.data(),
                                    .dtype = dtype_of<T>(),
                                    .rows = rows,
                                    .inner = inner,
                                    .columns = columns},
                                   queue);
        queue.wait();
        const auto at = [](const auto& values, std::int64_t i) {
          return static_cast<double>(values[static_cast<std::size_t>(i)]);
        };
        for (std::int64_t i = 0; i < rows; ++i)
          for (std::int64_t j = 0; j < columns; ++j) {
            double sum = 0, size = 0;
            for (std::int64_t k = 0; k < inner; ++k) {
              const double term = at(a, a_is_transposed ? k * rows + i : i * inner + k) *
                                  at(b, b_is_transposed ? j * inner + k : k * columns + j);
              sum += term;
              size += std::abs(term);
            }
            EXPECT_NEAR(at(product, i * columns + j), sum, (std::is_same_v<T, double> ? 1e-14 : 1e-6) * size);
          }
      }
}

// A plain sum of so many equal terms is 1e-3 off in f32.
TEST(LongMatrixProduct, LosesNothing) {
  constexpr std::int64_t terms = 1 << 17;
  backend::Array<float> a(terms, 0.1f), b(terms, 1.0f), product(1);
  Queue queue = backend::queue();
  queue.ops().matrix_product({.a = {a.data(), terms, 1},
                              .b = {b.data(), 1, 1},
                              .product = product.data(),
                              .dtype = DType::f32,
                              .rows = 1,
                              .inner = terms,
                              .columns = 1},
                             queue);
  queue.wait();
  const double exact = static_cast<double>(0.1f) * terms;
  EXPECT_NEAR(static_cast<double>(product[0]), exact, 1e-6 * exact);
}

}  // namespace
}  // namespace kernels_matrix_product_test
