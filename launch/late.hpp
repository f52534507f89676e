// What people are told of the ranks of an exchange that came to its deadline.
#pragma once

#include <string>

#include "allnorm/late.hpp"

namespace allnorm::launch {

/// "rank 0 (pid 7 on node1) has waited 2 s at bn, call 3, forward; rank 1 was last heard of at bn, call 2, backward"
std::string paragraph_of(const LateReport& late);

/// One paragraph on stderr by the rank that speaks, and where `folder` is not empty folder/late.r<rank>.json by every
/// one. Waits for no other thread's streams. What cannot be written is a warning.
void tell_late(const LateReport& late, const std::string& folder) noexcept;

}  // namespace allnorm::launch
