#include "allnorm/error.hpp"

namespace allnorm {

std::string_view to_string(Code code) noexcept {
  switch (code) {
    case Code::invalid_argument:
      return "invalid argument";
    case Code::invalid_input:
      return "invalid input";
    case Code::unsupported:
      return "unsupported";
    case Code::device:
      return "device";
    case Code::transport:
      return "transport";
    case Code::mismatch:
      return "mismatch";
    case Code::timeout:
      return "timeout";
    case Code::aborted:
      return "aborted";
    case Code::non_finite:
      return "non-finite";
  }
  return "unknown";
}

Error::Error(Code code, std::string message, Where where) : code_(code), message_(std::move(message)), where_(where) {}

void fail(Code code, std::string message, Where where) { throw Error(code, std::move(message), where); }

}  // namespace allnorm
