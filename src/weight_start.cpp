#include "allnorm/weight_start.hpp"

#include <cmath>
#include <string>
#include <utility>

#include "allnorm/norm.hpp"
#include "src/attributes.hpp"

namespace allnorm {

WeightStart weight_start(const ConstTensorView& t, std::shared_ptr<Communicator> group, Queue& queue, double eps) {
  static constexpr Row statistics{"weight_start", "", "", each_channel, {}, {}, {}, {}};
  Norm norm(Layer(statistics), t.channels(), std::move(group), queue);
  Buffer<std::byte> output(static_cast<std::size_t>(t.elements()) * size_of(t.dtype), queue, Fill::none);
  const Saved saved = norm.forward({.input = t}, {output.data(), t.dtype, t.device, t.shape, t.order}, queue);
  WeightStart start{to_host(saved.frame().var, queue), to_host(saved.frame().mean, queue)};
  for (std::size_t c = 0; c < start.g.size(); ++c) {
    const double sigma = std::sqrt(start.g[c] + eps);
    expect(sigma > 0 && std::isfinite(sigma), Code::invalid_input, [&] {
      return "variance of channel " + std::to_string(c) + " of t is " + attributes::text_of(start.g[c]) +
             ", must be finite, and above 0 with eps";
    });
    start.g[c] = 1 / sigma;
    start.bias[c] /= -sigma;
  }
  return start;
}

}  // namespace allnorm
