// How a call fails: want of memory is an Error as any other, and the ranks that wait for this one are told.
#pragma once

#include <new>

#include "allnorm/communicator.hpp"
#include "allnorm/error.hpp"

namespace allnorm {

/// Runs a call, or a part of one. Where the host's memory runs out it throws device.
template <class Call>
decltype(auto) with_named_errors(const Call& call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    fail(Code::device, "out of memory on the host");
  }
}

/// Runs a part of a call that this rank alone can fail. Where it throws, the ranks that wait for this one in an
/// exchange are told.
template <class Part>
decltype(auto) tell_others(bool others_wait, Communicator& group, const Part& part) {
  try {
    return with_named_errors(part);
  } catch (const Error& error) {
    if (others_wait) group.decline(error);
    throw;
  }
}

}  // namespace allnorm
