// The signs of y as bits, a stage of the CPU's forward half. (A GPU writes them where it writes y: tests of layers.)
#include "kernels/cpu/kernels.hpp"
#include "kernels_support.hpp"

namespace allnorm::kernel_test {
namespace {

template <class T>
class SignMask : public OverTypes<T> {};
TYPED_TEST_SUITE(SignMask, Types);

TYPED_TEST(SignMask, OfAnyLength) {
  using T = TypeParam;
  for (const std::int64_t n : {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 257, 1000, 70001}) {
    auto y = normal<T>(n, 4);
    for (std::int64_t i = 0; i < n; i += 5) y.set(i, i % 2 == 0 ? 0.0 : -0.0);
    backend::Array<std::uint8_t> mask(static_cast<std::size_t>((n + 7) / 8 + 2), 0xa5);
    cpu::sign_mask({y.data(), dtype_of<T>(), n, mask.data() + 1}, this->queue);
    EXPECT_EQ(mask.front(), 0xa5);
    EXPECT_EQ(mask.back(), 0xa5);
    for (std::int64_t i = 0; i < n; ++i)
      ASSERT_EQ((mask[static_cast<std::size_t>(1 + i / 8)] >> (i % 8)) & 1, y[i] > 0) << i << " of " << n;
  }
}

}  // namespace
}  // namespace allnorm::kernel_test
