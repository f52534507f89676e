// Links of a rank with one fault in them, in one exchange.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "src/exchange.hpp"

namespace faults {

enum class Kind {
  none,
  delay,       ///< the message leaves late, long before the deadline
  drop,        ///< it does not leave
  die,         ///< the rank ends there, without a word: Died is thrown
  wrong_size,  ///< it is shorter or longer than it was
  fail,        ///< the transport throws
  no_memory,   ///< an allocation of the rank's call fails: of the test, which knows the calls
};
constexpr Kind kinds[] = {Kind::delay, Kind::drop, Kind::die, Kind::wrong_size, Kind::fail, Kind::no_memory};
const char* name_of(Kind kind) noexcept;

struct Fault {
  Kind kind = Kind::none;
  int rank = 0;
  std::uint64_t call = 0;  ///< the exchange of the communicator of all ranks
};

/// No Error: nothing of the library may take it for one of its own.
struct Died {};

/// Communicators of ranks as threads, with the fault where it belongs. `ranks_per_node`: 0 for ranks that share memory;
/// otherwise they only send messages, on nodes of so many.
std::vector<std::shared_ptr<allnorm::Communicator>> threads(int ranks, const Fault& fault, int ranks_per_node,
                                                            const allnorm::Patience& patience);

}  // namespace faults
