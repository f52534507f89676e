// Arrays of coefficients, as steps write them and the maps of ops.hpp read them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formulas.hpp"

namespace allnorm {

/// A number of the arrays' own kind as the standard's containers take it.
constexpr std::size_t index(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

/// Of y = (x - center) * scale + shift.
struct ApplyArrays {
  double *scale = nullptr, *shift = nullptr;  // (G)

  ALLNORM_HOST_DEVICE void set(std::int64_t g, const formulas::ApplyCoefficients& k) const {
    scale[g] = k.scale;
    shift[g] = k.shift;
  }
};

/// Of dx = g * gain + (x - center) * power * slope + offset; null where no dx is asked for.
struct GradArrays {
  double *gain = nullptr, *slope = nullptr, *offset = nullptr, *power = nullptr;  // (G)

  ALLNORM_HOST_DEVICE bool given() const { return gain != nullptr; }
  ALLNORM_HOST_DEVICE void set(std::int64_t g, const formulas::GradCoefficients& k) const {
    gain[g] = k.gain;
    slope[g] = k.slope;
    offset[g] = k.offset;
    power[g] = k.power;
  }
};

}  // namespace allnorm
