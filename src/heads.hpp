// What the heads of gathered records say, as errors.
#pragma once

#include <cstdint>
#include <string>

#include "allnorm/communicator.hpp"

namespace allnorm {

/// Throws what is wrong with an exchange (ExchangeReport::Status: declined, mismatch, weights_changed or too_many) of
/// ranks of these names and heads.
[[noreturn]] void fail_exchange(std::uint64_t status, const RecordHead& first, const std::string& first_name,
                                const RecordHead& other, const std::string& name);

/// Throws that unless the heads of records in the host's memory, one of each rank of `group`, agree.
void expect_agreement(const Gathered& heads, const Communicator& group);

}  // namespace allnorm
