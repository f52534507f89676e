// Products of small matrices, four rows at a time.
#include "kernels/cpu/tile_products.hpp"

#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tile_products.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Four rows at a time share the loads of b.
template <class T>
void products(const T* a, std::int64_t rows, const T* b, std::int64_t terms, std::int64_t width, T* sums) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t vectors = width / lanes * lanes;
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const T *f0 = a + r * terms, *f1 = f0 + terms, *f2 = f1 + terms, *f3 = f2 + terms;
    T *s0 = sums + r * width, *s1 = s0 + width, *s2 = s1 + width, *s3 = s2 + width;
    for (std::int64_t i = 0; i < vectors; i += lanes) {
      auto v0 = hn::Zero(d), v1 = v0, v2 = v0, v3 = v0;
      for (std::int64_t t = 0; t < terms; ++t) {
        const auto own = hn::LoadU(d, b + t * width + i);
        v0 = hn::MulAdd(hn::Set(d, f0[t]), own, v0);
        v1 = hn::MulAdd(hn::Set(d, f1[t]), own, v1);
        v2 = hn::MulAdd(hn::Set(d, f2[t]), own, v2);
        v3 = hn::MulAdd(hn::Set(d, f3[t]), own, v3);
      }
      hn::StoreU(v0, d, s0 + i);
      hn::StoreU(v1, d, s1 + i);
      hn::StoreU(v2, d, s2 + i);
      hn::StoreU(v3, d, s3 + i);
    }
  }
  for (; r < rows; ++r)
    for (std::int64_t i = 0; i < vectors; i += lanes) {
      auto v = hn::Zero(d);
      for (std::int64_t t = 0; t < terms; ++t)
        v = hn::MulAdd(hn::Set(d, a[r * terms + t]), hn::LoadU(d, b + t * width + i), v);
      hn::StoreU(v, d, sums + r * width + i);
    }
  const hn::CappedTag<T, 1> one;  // the same fused multiply-add for what is left
  for (r = 0; r < rows; ++r)
    for (std::int64_t i = vectors; i < width; ++i) {
      auto v = hn::Zero(one);
      for (std::int64_t t = 0; t < terms; ++t)
        v = hn::MulAdd(hn::Set(one, a[r * terms + t]), hn::LoadU(one, b + t * width + i), v);
      sums[r * width + i] = hn::GetLane(v);
    }
}

void products_f32(const float* a, std::int64_t rows, const float* b, std::int64_t terms, std::int64_t width,
                  float* sums) {
  products(a, rows, b, terms, width, sums);
}
void products_f64(const double* a, std::int64_t rows, const double* b, std::int64_t terms, std::int64_t width,
                  double* sums) {
  products(a, rows, b, terms, width, sums);
}

}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {

HWY_EXPORT(products_f32);
HWY_EXPORT(products_f64);

void tile_products(const float* a, std::int64_t rows, const float* b, std::int64_t terms, std::int64_t width,
                   float* sums) {
  HWY_DYNAMIC_DISPATCH(products_f32)(a, rows, b, terms, width, sums);
}
void tile_products(const double* a, std::int64_t rows, const double* b, std::int64_t terms, std::int64_t width,
                   double* sums) {
  HWY_DYNAMIC_DISPATCH(products_f64)(a, rows, b, terms, width, sums);
}

}  // namespace allnorm::cpu
#endif
