// K ranks are one rank with the concatenated batch, for any split.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "allnorm/norm.hpp"
#include "cases.hpp"
#include "harness.hpp"

namespace laws_test {
namespace {

using namespace allnorm;
using reference::Array;
using reference::Doubles;

struct Outcome {
  Doubles y, dx;
  Doubles running;
};

Outcome run(const Layer& layer, const Array& x, const Array& dy, const harness::World& world, Queue& queue) {
  Norm norm(layer, x.shape[1], world, queue);
  Outcome out{Doubles(x.v.size()), Doubles(x.v.size()), {}};
  const Shape shape{x.shape[0], x.shape[1], x.shape[2]};
  ForwardInputs in;
  in.input = view(x.v.data(), shape);
  BackwardOutputs gradients;
  gradients.input = view(out.dx.data(), shape);
  const Saved saved = norm.forward(in, view(out.y.data(), shape), queue);
  norm.backward(saved, view(dy.v.data(), shape), gradients, queue);
  out.running = norm.running(queue).spread;
  return out;
}

RC_GTEST_PROP(SyncBatchNorm, IsBatchNormOfTheConcatenatedBatch, (std::uint32_t seed, bool relu)) {
  const int ranks = *rc::gen::inRange(1, 7);
  auto counts = *rc::gen::container<std::vector<std::int64_t>>(static_cast<std::size_t>(ranks),
                                                               rc::gen::inRange<std::int64_t>(0, 4));
  ++counts[seed % counts.size()];  // at least one sample in all
  const std::int64_t N = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  cases::Random random(seed);
  const Array x = cases::channelwise(random, {N, 3, 4}), dy = cases::normal(random, x.shape);
  Layer layer("sync_batch_norm");
  layer.set("activation", relu ? "relu" : "identity");
  Queue queue = Queue::cpu();
  const Outcome whole = run(layer, x, dy, self(), queue);
  const auto xs = cases::cut(x, counts), dys = cases::cut(dy, counts);
  std::vector<Outcome> parts(static_cast<std::size_t>(ranks));
  harness::run(ranks, [&](const harness::World& world, Queue& own) {
    const auto r = static_cast<std::size_t>(world->rank());
    parts[r] = run(layer, xs[r], dys[r], world, own);
  });
  Doubles y, dx;
  for (const Outcome& part : parts) {
    y.insert(y.end(), part.y.begin(), part.y.end());
    dx.insert(dx.end(), part.dx.begin(), part.dx.end());
    RC_ASSERT(part.running == parts[0].running);
  }
  RC_ASSERT(cases::relative_error(y, whole.y) <= 1e-12);
  RC_ASSERT(cases::relative_error(dx, whole.dx) <= 1e-12);
}

}  // namespace
}  // namespace laws_test
