// The version of NCCL. Only in builds that have it.
#pragma once

#include <string>

namespace allnorm {

/// Of the library that runs, such as "2.27.3".
std::string nccl_version();

}  // namespace allnorm
