// Versions of CUDA as people write them.
#pragma once

#include <string>

namespace allnorm::cuda {

/// "13.2" of 13020.
inline std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace allnorm::cuda
