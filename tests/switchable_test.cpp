// Switchable Normalization against plain loops: a lone rank's calls, its state and inference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "allnorm/batch_average.hpp"
#include "backend.hpp"
#include "harness.hpp"
#include "switchable_cases.hpp"

namespace switchable_test {
namespace {

using namespace allnorm;
using namespace switchable_cases;
using cases::Extents;
using cases::Random;
using harness::error_of;
using operation_cases::expect_near;

TEST(SwitchableNorm, EqualsTheLoops) {
  for (const DType dtype : types)
    for (const Order order : {Order::channels_first, Order::channels_last})
      for (const bool unbiased : {false, true})
        for (const Extents& shape : {Extents{3, 4}, Extents{1, 3, 1}, Extents{3, 5, 7}, Extents{1, 1, 6},
                                     Extents{2, 17, 3, 2, 3}, Extents{0, 3, 4}, Extents{2, 3, 0}}) {
          if (unbiased && reference::elements({shape.begin() + 2, shape.end()}) == 1) continue;  // nan
          if (backend::takes_some && unbiased != (order == Order::channels_last)) continue;
          SCOPED_TRACE(std::string(to_string(dtype)) + ", " + std::to_string(shape.size()) + "-D, " +
                       (order == Order::channels_first ? "first" : "last") + (unbiased ? ", unbiased" : ""));
          Random random(3);
          Options o{.unbiased = unbiased};
          Parameters p = parameters(random, shape[1]);
          Subject subject(layer_of(o), shape[1], dtype, order);
          for (int step = 0; step < 3; ++step) {
            const Array x = operation_cases::rounded(cases::channelwise(random, shape, 0.5, 1), dtype),
                        dy = operation_cases::rounded(cases::normal(random, shape), dtype);
            const Expected want = loops({x}, {dy}, p, o);
            Arrays got = subject(tensors(x, dy, p));
            expect_equal(got, want, 0, dtype);
            expect_running(subject, want, operation_cases::statistics_tolerance_of(dtype));
            p.running_mean = want.running_mean, p.running_var = want.running_var;
          }
          o.training = false;
          subject.operation->set_training(false);
          const Array x = operation_cases::rounded(cases::channelwise(random, shape, 0.5, 1), dtype),
                      dy = operation_cases::rounded(cases::normal(random, shape), dtype);
          const Expected want = loops({x}, {dy}, p, o);
          Arrays got = subject(tensors(x, dy, p));
          expect_equal(got, want, 0, dtype);
          expect_running(subject, want, operation_cases::statistics_tolerance_of(dtype));
        }
}

TEST(SwitchableNorm, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  Random random(5);
  for (const bool training : {true, false})
    for (const bool unbiased : {true, false}) {
      const Options o{.training = training, .unbiased = unbiased};
      const Array x = cases::channelwise(random, {3, 2, 2, 2}, 0.5, 1), dy = cases::normal(random, {3, 2, 2, 2});
      operation_cases::expect_gradients([&] { return Subject(layer_of(o), 2); }, tensors(x, dy, parameters(random, 2)));
    }
}

TEST(SwitchableNorm, MixesEquallyWithoutLogits) {
  Random random(5);
  Parameters p = parameters(random, 3);
  p.mean_logits = p.var_logits = {1, 1, 1};
  const Array x = cases::channelwise(random, {4, 3, 5}, 0.5, 1), dy = cases::normal(random, {4, 3, 5});
  Arrays given = tensors(x, dy, p);
  Subject with(layer_of({}), 3), without(layer_of({}), 3);
  const Doubles y = with(given)["output"].v;
  given.erase("mean_logits");
  given.erase("var_logits");
  EXPECT_EQ(without(given)["output"].v, y);
  // far apart, one weight is everything: instance norm's
  p.mean_logits = p.var_logits = {1000, -1000, 0};
  Arrays got = with(tensors(x, dy, p));
  p.mean_logits = p.var_logits = {40, -40, -40};
  expect_near("output", got["output"].v, loops({x}, {dy}, p, {}).y[0].v, 1e-12);
}

TEST(SwitchableNorm, ReplaysAndInfers) {
  Random random(9);
  const Parameters p = parameters(random, 3);
  const Doubles values = cases::channelwise(random, {4, 3, 5}, 0.5, 1).v;
  const backend::Array<double> x(values.begin(), values.end()), logits(p.mean_logits.begin(), p.mean_logits.end());
  backend::Array<double> y(x.size()), again(x.size());
  Queue queue = backend::queue();
  const auto operation = make_operation(layer_of({}), 3, nullptr, queue);
  const Shape shape{4, 3, 5};
  const InputSlots in{{"input", backend::view(x.data(), shape)},
                      {"mean_logits", backend::view(logits.data(), Shape{3})}};
  const OutputSlots first{{"output", backend::view(y.data(), shape)}},
      other{{"output", backend::view(again.data(), shape)}};
  const auto saved = operation->forward(in, first, queue);
  const State before = operation->state(queue);
  operation->replay(*saved, in, other, queue);
  queue.wait();
  EXPECT_EQ(again, y);
  operation->infer(in, other, queue);
  queue.wait();
  EXPECT_NE(again, y);
  const backend::Array<double> inferred = again;
  operation->set_training(false);
  operation->forward(in, other, queue);
  queue.wait();
  EXPECT_EQ(again, inferred);
  for (std::size_t i = 0; i < 2; ++i) EXPECT_EQ(operation->state(queue).entries[i].data, before.entries[i].data);
}

TEST(SwitchableNorm, GoesOnFromItsSavedState) {
  Random random(9);
  const Parameters p = parameters(random, 3);
  const auto given = [&] {
    return tensors(cases::channelwise(random, {4, 3, 5}, 0.5, 1), cases::normal(random, {4, 3, 5}), p);
  };
  Subject first(layer_of({}), 3), second(layer_of({}), 3);
  first(given());
  second.operation->load(first.operation->save(first.queue), second.queue);
  const Arrays next = given();
  EXPECT_EQ(first(next)["output"].v, second(next)["output"].v);
  for (const char* name : {"running_mean", "running_var"}) EXPECT_EQ(first.state(name), second.state(name)) << name;
  Subject other(parse_layer("batch_norm"), 3);
  EXPECT_EQ(error_of([&] { second.operation->load(other.operation->save(other.queue), second.queue); }),
            "invalid input: state is of layer batch_norm, must be of switchable_norm or its family");
  State wrong;
  wrong.add("running_var", Doubles{1, -1, 1}.data(), Shape{3});
  EXPECT_NE(error_of([&] { second.operation->set_state(wrong, second.queue); }), "");
}

TEST(SwitchableNorm, ValuesThatAreNotFiniteStayInTheirCall) {
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
    Random random(9);
    const Parameters p = parameters(random, 3);
    Array x = cases::channelwise(random, {4, 3, 5}, 0.5, 1);
    const Array dy = cases::normal(random, {4, 3, 5});
    Subject clean(layer_of({}), 3), hit(layer_of({}), 3);
    clean(tensors(x, dy, p));
    x.v[5 * 3 + 7] = value;  // sample 1, channel 1
    hit(tensors(x, dy, p));
    for (const char* name : {"running_mean", "running_var"}) {
      const Doubles a = hit.state(name), b = clean.state(name);
      EXPECT_EQ(a[0], b[0]) << name;
      EXPECT_EQ(a[1], name == std::string("running_var") ? 1 : 0) << name;
      EXPECT_EQ(a[2], b[2]) << name;
    }
  }
}

// Averages of E[mean] and of E[var + mean^2] over batches, of ranks together too.
TEST(SwitchableNorm, InfersWithAveragesOfBatches) {
  Random random(9);
  const Parameters p = parameters(random, 3);
  std::vector<Array> batches;
  Doubles mean(3), square(3);
  for (int i = 0; i < 4; ++i) {
    batches.push_back(cases::channelwise(random, {2 + i, 3, 5}, 0.5 + i, 1));
    const Expected of = loops({batches.back()}, {batches.back()}, p, {});
    for (std::size_t c = 0; c < 3; ++c) {
      mean[c] += of.batch_mean[c] / 4;
      square[c] += (of.batch_var[c] + of.batch_mean[c] * of.batch_mean[c]) / 4;
    }
  }
  Doubles var(3);
  for (std::size_t c = 0; c < 3; ++c) var[c] = square[c] - mean[c] * mean[c];
  for (const char* layer : {"switchable_norm", "batch_norm"}) {
    Subject subject(parse_layer(layer), 3);
    BatchAverage average;
    EXPECT_EQ(error_of([&] { average.set(*subject.operation, subject.queue); }),
              "invalid argument: an average of batches has no call, must have at least one");
    for (const Array& batch : batches) {
      const backend::Array<double> x(batch.v.begin(), batch.v.end());
      backend::Array<double> y(x.size());
      const Shape shape(std::span<const std::int64_t>(batch.shape));
      const auto saved = subject.operation->forward({{"input", backend::view(x.data(), shape)}},
                                                    {{"output", backend::view(y.data(), shape)}}, subject.queue);
      average.add(*saved, subject.queue);
    }
    average.set(*subject.operation, subject.queue);
    expect_near("running_mean", subject.state("running_mean"), mean, 1e-12, 1);
    expect_near("running_var", subject.state("running_var"), var, 1e-12, 1);
  }
}

}  // namespace
}  // namespace switchable_test
