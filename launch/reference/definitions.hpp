// Every layer of the catalogue by its definition: calls with tensors under the names of its slots, and how far a right
// implementation may be from what they give.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "allnorm/dtype.hpp"
#include "launch/reference/reference.hpp"

namespace reference {

/// In logical order (N, C, space...), under the names that the catalogue has; "input" and "grad_output" among them.
using Tensors = std::map<std::string, Array, std::less<>>;

/// How a value comes about: what rounding does to its terms on the way.
enum class Rounding : std::uint8_t {
  value,      ///< made in the input's compute type, a few roundings of that; and one of the input's type
  parameter,  ///< a sum over values, each of which is made in the compute type
  statistic,  ///< in double
};

/// How far sums of squares are off, relative, that are added in double about one of the values: a rounding for each of
/// some hundred that wander, and a few of the merge. Of the variance that is 1 + (x - mean)^2/var times as much, x
/// being that value (spread_of).
inline constexpr double statistics_in_double = 16 * 0x1p-53;

/// What a call must give, in the order of the catalogue's arrays.
struct Answer {
  Doubles values;
  Rounding rounding = Rounding::value;
  Doubles sizes{};          ///< of each: of what it is the sum of, together, where that is more than its own size
  Doubles by_statistics{};  ///< of each: what it goes by, per relative error of the call's statistics; empty: the size
  double follows = 1;       ///< how many times such an error shows in that
  double exact = statistics_in_double;  ///< a relative error of statistics that are summed in double
  double narrow = 0;                    ///< what the compute type of f32, f16 and bf16 adds to it
};
using Answers = std::map<std::string, Answer, std::less<>>;

/// Half a unit in the last place of values near 1.
double unit_of(allnorm::DType dtype);
/// What values that are made in that type may be off, of their terms: a few roundings.
double value_tolerance(allnorm::DType dtype);
/// How far sums over values of 16 bits are off, and on a GPU of f32: a rounding of each difference, of its square, and
/// of up to eight terms that are added in f32.
inline constexpr double short_sums = 16 * 0x1p-24;
/// That where sums over values of a type are short, and 0 where they are in double.
inline double statistics_unit(allnorm::DType dtype, bool gpu) {
  return dtype == allnorm::DType::f64 || (dtype == allnorm::DType::f32 && !gpu) ? 0 : short_sums;
}
/// What each of the answer's values may be off. `statistics`: that unit.
Doubles tolerances_of(const Answer& answer, allnorm::DType dtype, double statistics);
/// The size of its largest value, or of what that is the sum of.
double largest_of(const Answer& answer);

/// One layer object. All ranks of a group are one call on all that they hold together.
class Definition {
 public:
  virtual ~Definition() = default;
  /// "output", statistics and state after the call, under the names of the row's outputs.
  virtual Answers forward(const Tensors& given, bool training) = 0;
  /// Of the last forward call: "grad_input" and the gradients of all that is given.
  virtual Answers backward(const Tensors& given) = 0;
  /// Of the last forward call: how far each value is from a threshold, where rounding decides which gradient it has;
  /// empty where there is none.
  virtual Doubles distances() const { return {}; }
};

struct Defined {
  std::string_view row;
  /// Attributes ("eps=0.1:eps_place=outside") with which the definition's parts show.
  std::span<const std::string_view> variants;
  std::unique_ptr<Definition> (*make)(const NormOptions& options, std::int64_t channels);
};
/// All of them.
std::span<const Defined> definitions();

}  // namespace reference
