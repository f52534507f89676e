// The version of the NCCL that runs, which may be another one than that of the header.
#include "src/transport/nccl_version.hpp"

#include <nccl.h>

namespace allnorm {

std::string nccl_version() {
  int version = 0;  // 22703 is 2.27.3
  if (ncclGetVersion(&version) != ncclSuccess) return "of unknown version";
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace allnorm
