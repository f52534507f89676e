// CUDA's qualifiers as g++ can read them. They are macros because CUDA's are.
#pragma once

#include <type_traits>

#include "engine.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
/// A block's shared variable `name`, in place of CUDA's `__shared__ type name`, which does not let the emulation see
/// how large it is. The type comes last: it may have commas.
#define ALLNORM_EMULATED_SHARED(name, ...) \
  static char name##_key;                  \
  auto& name =                             \
      *static_cast<std::type_identity_t<__VA_ARGS__>*>(allnorm_emulated_shared(&name##_key, sizeof(__VA_ARGS__)))
