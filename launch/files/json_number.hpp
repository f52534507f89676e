// Whole numbers of JSON that may be anything.
#pragma once

#include <cstdint>
#include <limits>

namespace allnorm::launch {

/// A number without a point, or the largest there is where it is larger; throws what JSON's functions do for another
/// type. Those make an integer of any number, which for 1e99 is not defined.
template <class Json>
std::int64_t whole(const Json& value) {
  const std::int64_t number = value.template get_ref<const std::int64_t&>();
  return value.is_number_unsigned() && number < 0 ? std::numeric_limits<std::int64_t>::max() : number;
}

}  // namespace allnorm::launch
