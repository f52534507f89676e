// The one exception type of allnorm, and the function that throws it.
#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

/// The library; allnorm::torch_adapter has its layers for libtorch.
namespace allnorm {

/// What kind of thing went wrong. The program maps each to an exit code (docs/cli.md).
enum class Code {
  invalid_argument,  ///< an attribute, a shape or a missing tensor: the call itself is wrong
  invalid_input,     ///< the content of a file or of a tensor is wrong
  unsupported,       ///< a device, transport or optional part that this build or machine lacks
  device,            ///< an accelerator reported an error
  transport,         ///< the exchange between ranks failed
  mismatch,          ///< the ranks of a group disagree with each other
  timeout,           ///< a rank is missing or late
  aborted,           ///< another rank failed first
  non_finite,        ///< a call's input is not finite, and the layer is to fail then
};

/// The lower-case name of a code, as printed: "invalid argument", "mismatch", ...
std::string_view to_string(Code code) noexcept;

/// A place in the source.
struct Where {
  const char* file = "";  ///< as the compiler was given it
  int line = 0;           ///< from 1
  /// The place that calls it.
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) noexcept {
    return {file, line};
  }
};

/// Every failure of the library. `what()` is the message: one line that names the thing, what it was and what it
/// must be. `where()` is the place that noticed it.
class Error : public std::exception {
 public:
  /// `message`: one line.
  Error(Code code, std::string message, Where where = Where::here());
  const char* what() const noexcept override { return message_.c_str(); }  ///< the message
  const std::string& message() const noexcept { return message_; }         ///< the same
  Code code() const noexcept { return code_; }                             ///< what kind of failure it is
  Where where() const noexcept { return where_; }                          ///< the place that noticed it

 private:
  Code code_;
  std::string message_;
  Where where_;
};

/// Throws Error{code, message}.
[[noreturn]] void fail(Code code, std::string message, Where where = Where::here());

/// Throws Error{code, what} unless `condition` holds. `what` is a string, or a callable that makes one: use the
/// callable where composing the message costs something.
template <class What>
void expect(bool condition, Code code, What&& what, Where where = Where::here()) {
  if (condition) return;
  if constexpr (std::is_invocable_v<What>)
    fail(code, std::forward<What>(what)(), where);
  else
    fail(code, std::string(std::forward<What>(what)), where);
}

}  // namespace allnorm
