// Products of small matrices, what sums of many products are made of.
#pragma once

#include <cstdint>

namespace allnorm::cpu {

/// Terms that may be added up in the compute type: so few that nothing is lost that matters (16 roundings).
constexpr std::int64_t product_terms = 64;

/// sums[r][i] = sum over t of a[r][t] * b[t][i], for `rows` rows of `width` values; all dense.
void tile_products(const float* a, std::int64_t rows, const float* b, std::int64_t terms, std::int64_t width,
                   float* sums);
void tile_products(const double* a, std::int64_t rows, const double* b, std::int64_t terms, std::int64_t width,
                   double* sums);

}  // namespace allnorm::cpu
