// Steps of one value each: what is not in the type that the kernels write.
#pragma once

#include <cstdint>

#include "allnorm/dtype.hpp"
#include "kernels/layer_state.hpp"

namespace allnorm::steps {

template <class T>
struct Narrow {
  const compute_t<T>* from = nullptr;
  T* to = nullptr;

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const { to[i] = store<T>(from[i]); }
};

/// A value of one floating-point type, in another.
struct Convert {
  Parameter from{};
  ParameterGrad to{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const { to.set(i, from[i]); }
};

/// A gradient in double, to a parameter's.
struct WriteGradient {
  const double* from = nullptr;
  ParameterGrad to{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const { to.set(i, from[i]); }
};

}  // namespace allnorm::steps
