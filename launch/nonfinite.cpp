#include "launch/nonfinite.hpp"

#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "allnorm/dtype.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch {

namespace {

constexpr std::string_view attribute = "nonfinite";

}  // namespace

void set_nonfinite(const RankOptions& options, bool given, Layer& layer) {
  if (options.nonfinite.empty() || given) return;
  if (layer.row->attribute(attribute) != nullptr) layer.set(attribute, options.nonfinite);
}

void NonFiniteTeller::tell(std::size_t number, const NonFiniteCalls& met, const Layer& layer,
                           const Communicator& group) {
  if (number >= told_.size()) told_.resize(number + 1);
  const bool more = met.calls > std::exchange(told_[number], met.calls);
  if (!more || group.rank() != 0) return;
  if (layer.options.nonfinite == NonFinite::skip_update)
    warn(met.last + "; the layer's update is skipped, " + std::to_string(met.calls) + " so far");
  else if (!std::exchange(warned_, true))
    warn(met.last + "; what is hit stays out of running statistics and windows");
}

bool is_finite(const RankOptions& options, const Layer& layer, const ConstTensorView& input, std::int64_t call,
               const Rank& rank) {
  bool finite = true;
  if (input.dtype == DType::i64) return finite;
  visit(input.dtype, [&]<class T>(std::type_identity<T>) {
    const auto* const values = static_cast<const T*>(input.data);
    for (std::int64_t i = 0; i < input.elements(); ++i) finite &= std::isfinite(load(values[i]));
  });
  if (finite) return true;
  const std::string text = "rank " + std::to_string(rank.rank) + ": " + std::string(layer.row->name) + ", call " +
                           std::to_string(call) + ", forward: input is not finite";
  expect(options.nonfinite != "fail", Code::non_finite, text + ", must be finite everywhere");
  warn(text);
  return false;
}

}  // namespace allnorm::launch
