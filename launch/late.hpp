// What people are told of the ranks of an exchange that came to its deadline.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "allnorm/late.hpp"

namespace allnorm::launch {

/// "rank 0 (pid 7 on node1) has waited 2 s at bn, call 3, forward; rank 1 was last heard of at bn, call 2, backward"
std::string paragraph_of(const LateReport& late);

/// The same for a record.
nlohmann::json json_of(const LateReport& late);

/// One paragraph on stderr by the rank that speaks. Waits for no other thread's streams.
void tell_late(const LateReport& late) noexcept;

}  // namespace allnorm::launch
