// What a layer sends, what its ranks are told when they disagree, and who takes part.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "norm_cases.hpp"

namespace layer_exchange_test {
namespace {

using namespace allnorm;
using cases::Random;
using harness::error_of;
using harness::World;
using reference::Array;
using reference::Doubles;

Shape shape_of(const std::vector<std::int64_t>& extents) { return Shape(std::span<const std::int64_t>(extents)); }

// One training call on (2, C) or (2, C, 3, 3) made by a 1x1 convolution of (2, 2, ...).
struct Rank {
  Rank(const Layer& layer, const World& world, Queue& q, std::uint64_t seed = 3)
      : queue(q),
        random(seed),
        x(cases::normal(random, {2, 5, 3, 3})),
        conv_input(cases::normal(random, {2, 2, 3, 3})),
        weight(cases::normal(random, {5, 2, 1, 1})),
        y(x.v.size()),
        norm(layer, 5, world, queue) {}
  Saved forward() {
    ForwardInputs in;
    in.input = view(x.v.data(), shape_of(x.shape));
    in.conv_input = view(conv_input.v.data(), shape_of(conv_input.shape));
    in.conv_weight = view(weight.v.data(), shape_of(weight.shape));
    return norm.forward(in, view(y.data(), shape_of(y_shape())), queue);
  }
  void backward(const Saved& saved) {
    Doubles dx(x.v.size());
    BackwardOutputs out;
    out.input = view(dx.data(), shape_of(x.shape));
    norm.backward(saved, view(x.v.data(), shape_of(x.shape)), out, queue);
  }
  const std::vector<std::int64_t>& y_shape() const { return x.shape; }

  Queue& queue;
  Random random;
  Array x, conv_input, weight;
  Doubles y;
  Norm norm;
};

TEST(MessageSize, IsTwoNumbersPerChannelAndIterationInTheWindow) {
  harness::run(2, [](const World& world, Queue& queue) {
    const std::int64_t C = 5, k = 4;
    Rank rank(Layer("cross_iteration_batch_norm").set("window", "4"), world, queue);
    std::uint64_t before = 0;
    for (std::int64_t step = 0; step < 6; ++step) {
      const Saved saved = rank.forward();
      const auto entries = std::min(step, k - 1);
      EXPECT_EQ(world->traffic().bytes - before, 8u * static_cast<std::uint64_t>(1 + 2 * C * (1 + entries)));
      before = world->traffic().bytes;
      rank.backward(saved);
      EXPECT_EQ(world->traffic().bytes - before, 8u * 2u * C);
      before = world->traffic().bytes;
    }
    EXPECT_EQ(world->traffic().exchanges, 12u);
  });
}

TEST(Inference, ExchangesNothing) {
  harness::run(2, [](const World& world, Queue& queue) {
    Rank rank(Layer("sync_batch_norm").set("training", "false"), world, queue);
    if (world->rank() == 0) rank.backward(rank.forward());  // the other rank never comes
    EXPECT_EQ(world->traffic().exchanges, 0u);
  });
}

TEST(GroupNorm, MayBeCutAlongSpace) {
  Random random(4);
  const Array whole = cases::normal(random, {2, 4, 6});
  const auto sets = reference::group_norm_sets(whole.shape, 2);
  const Array dy = cases::normal(random, whole.shape);
  const auto expected = reference::rows_forward(whole, sets, {}, {}, 1e-5);
  const auto gradients = reference::rows_backward(whole, sets, {}, dy, 1e-5);
  harness::run(3, [&](const World& world, Queue& queue) {
    const auto part = [&](const Array& a) {  // columns 2r, 2r+1 of each row of 6
      Doubles made;
      for (std::size_t i = 0; i < a.v.size(); ++i)
        if (static_cast<int>(i % 6 / 2) == world->rank()) made.push_back(a.v[i]);
      return made;
    };
    const Doubles x = part(whole), g = part(dy);
    Doubles y(x.size()), dx(x.size());
    const Shape shape{2, 4, 2};
    Norm norm(Layer("group_norm").set("groups", "2"), 4, world, queue);
    ForwardInputs in;
    in.input = view(x.data(), shape);
    const Saved saved = norm.forward(in, view(y.data(), shape), queue);
    BackwardOutputs out;
    out.input = view(dx.data(), shape);
    norm.backward(saved, view(g.data(), shape), out, queue);
    EXPECT_LE(cases::relative_error(y, part(expected.y)), 1e-12);
    EXPECT_LE(cases::relative_error(dx, part(gradients.dx)), 1e-12);
  });
}

// What every rank of two is told when rank 1's layer is set up by `change`.
std::string told(const Layer& layer, const std::function<void(Layer&)>& change,
                 const std::function<void(Rank&)>& prepare = {}) {
  std::mutex mutex;
  std::set<std::string> messages;
  harness::run(2, [&](const World& world, Queue& queue) {
    Layer mine = layer;
    if (world->rank() == 1) change(mine);
    Rank rank(mine, world, queue);
    if (world->rank() == 1 && prepare) prepare(rank);
    const std::string message = error_of([&] { rank.forward(); });
    EXPECT_EQ(rank.norm.running(rank.queue).tracked, 0);
    const std::lock_guard lock(mutex);
    messages.insert(message);
  });
  EXPECT_EQ(messages.size(), 1u);  // all are told the same
  return *messages.begin();
}

TEST(Disagreement, NamesTheFieldAndTheRank) {
  const auto attribute = [](const char* name, const char* value) {
    return [=](Layer& layer) { layer.set(name, value); };
  };
  const std::string rank1 = "mismatch: rank 1: sync_batch_norm, call 0, forward: ";
  const Layer sync("sync_batch_norm");
  EXPECT_EQ(told(sync, attribute("eps", "1e-3")), rank1 + "eps is 0.001, must be 1e-05 as on rank 0");
  EXPECT_EQ(told(sync, attribute("eps_place", "outside")), rank1 + "eps_place is outside, must be inside as on rank 0");
  EXPECT_EQ(told(sync, attribute("momentum", "cumulative")),
            rank1 + "momentum is cumulative, must be 0.1 as on rank 0");
  EXPECT_EQ(told(sync, attribute("minibatches", "3")), rank1 + "minibatches is 3, must be 1 as on rank 0");
  EXPECT_EQ(told(sync, attribute("renorm", "true")), rank1 + "renorm is true, must be false as on rank 0");
  EXPECT_EQ(told(
                sync, [](Layer&) {},
                [](Rank& r) {
                  RunningStatistics running = r.norm.running(r.queue);
                  running.mean[2] = 1;
                  r.norm.set_running(running, r.queue);
                }),
            rank1 + "the running state differs, must be the same as on rank 0");

  Layer window("cross_iteration_batch_norm");
  const std::string windowed = "mismatch: rank 1: cross_iteration_batch_norm, call 0, forward: ";
  EXPECT_EQ(told(window, attribute("window", "5")), windowed + "window is 5, must be 4 as on rank 0");
  EXPECT_EQ(told(window, attribute("guard", "drop")), windowed + "guard is drop, must be clamp as on rank 0");
  EXPECT_EQ(told(
                window, [](Layer&) {}, [](Rank& r) { r.weight.v[3] += 1; }),
            windowed + "conv_weight differs, must be the same as on rank 0");
}

// Rank 1 loads a state that differs in `entry`; what both are told at their next call.
std::string told_of_state(const std::string& text, const std::string& entry, double value) {
  std::mutex mutex;
  std::set<std::string> messages;
  harness::run(2, [&](const World& world, Queue& queue) {
    Rank rank(parse_layer(text), world, queue);
    rank.forward();
    State state = rank.norm.save(rank.queue);
    if (world->rank() == 1)
      for (StateEntry& e : state.entries)
        if (e.name == entry) {
          if (e.type == StateType::i64) {
            const auto whole = static_cast<std::int64_t>(value);
            std::memcpy(e.data.data(), &whole, sizeof whole);
          } else {
            std::memcpy(e.data.data(), &value, sizeof value);
          }
        }
    rank.norm.load(state, rank.queue);
    const std::string message = error_of([&] { rank.forward(); });
    const std::lock_guard lock(mutex);
    messages.insert(message);
  });
  EXPECT_EQ(messages.size(), 1u);
  return *messages.begin();
}

TEST(Disagreement, OfLoadedStatesIsNamed) {
  const std::string naive = "cross_iteration_batch_norm:compensate=false",
                    call = "mismatch: rank 1: cross_iteration_batch_norm, call 0";
  const std::string history = ", forward: the state of window and batch differs, must be the same as on rank 0";
  const auto at_call_0 = [](std::string text) { return text.replace(text.find("call 1"), 6, "call 0"); };
  EXPECT_EQ(at_call_0(told_of_state(naive, "allnorm.window.0.mean", 3)), call + history);
  EXPECT_EQ(at_call_0(told_of_state(naive, "allnorm.batches", 7)), call + history);
}

// A rank whose own tensors are wrong: its peers learn why, at once, and the group can go on.
TEST(BadInputOfOneRank, IsToldToItsPeers) {
  harness::run(3, [](const World& world, Queue& queue) {
    Rank rank(Layer("sync_batch_norm"), world, queue);
    const std::vector<std::int64_t> labels(5);
    ForwardInputs in;
    in.input = view(rank.x.v.data(), shape_of(rank.x.shape));
    if (world->rank() == 1) in.weight = view(labels.data(), Shape{5});
    const auto forward = [&] {
      return error_of([&] { rank.norm.forward(in, view(rank.y.data(), in.input.shape), queue); });
    };
    const std::string wrong = "weight has dtype i64, must have f64, f32, f16 or bf16";
    EXPECT_EQ(forward(), world->rank() == 1 ? "invalid argument: " + wrong : "aborted: rank 1 failed: " + wrong);
    EXPECT_EQ(rank.norm.running(rank.queue).tracked, 0);
    in.weight = {};
    EXPECT_EQ(forward(), "");
    EXPECT_EQ(rank.norm.running(rank.queue).tracked, 1);

    const Saved saved = rank.norm.forward(in, view(rank.y.data(), in.input.shape), queue);
    Doubles dx(rank.x.v.size());
    std::vector<std::int64_t> gradient(5);
    BackwardOutputs out;
    out.input = view(dx.data(), in.input.shape);
    if (world->rank() == 2) out.weight = view(gradient.data(), Shape{5});
    const std::string bad = "grad_weight has dtype i64, must have f64, f32, f16 or bf16";
    EXPECT_EQ(error_of([&] { rank.norm.backward(saved, in.input, out, queue); }),
              world->rank() == 2 ? "invalid argument: " + bad : "aborted: rank 2 failed: " + bad);
    EXPECT_EQ(dx, Doubles(dx.size()));
  });
}

TEST(Nonfinite, StatisticsDoNotOutliveTheirCall) {
  harness::run(2, [](const World& world, Queue& queue) {
    Rank rank(Layer("sync_batch_norm"), world, queue);
    rank.forward();
    const double kept = rank.x.v[3];
    if (world->rank() == 1) rank.x.v[3] = INFINITY;
    rank.forward();
    EXPECT_TRUE(std::isnan(rank.y[0]));  // channel 0 of this call is lost
    EXPECT_FALSE(std::isnan(rank.y[10]));
    rank.x.v[3] = kept;
    rank.forward();
    for (const double v : rank.y) EXPECT_TRUE(std::isfinite(v));
  });
}

TEST(GroupNorm, IsTheSameInBothModes) {
  harness::run(2, [](const World& world, Queue& queue) {
    Random random(8 + static_cast<std::uint64_t>(world->rank()));
    const Array x = cases::normal(random, {2, 4, 3}), dy = cases::normal(random, x.shape);
    const auto gradient = [&](bool training) {
      Norm norm(Layer("group_norm").set("groups", "2"), 4, world, queue);
      norm.set_training(training);
      Doubles y(x.v.size()), dx(x.v.size());
      ForwardInputs in;
      in.input = view(x.v.data(), shape_of(x.shape));
      BackwardOutputs out;
      out.input = view(dx.data(), shape_of(x.shape));
      const Saved saved = norm.forward(in, view(y.data(), shape_of(x.shape)), queue);
      norm.backward(saved, view(dy.v.data(), shape_of(x.shape)), out, queue);
      return dx;
    };
    EXPECT_EQ(gradient(true), gradient(false));
  });
}

TEST(Disagreement, BeginBatchOnOneRankIsNamed) {
  std::mutex mutex;
  std::set<std::string> messages;
  harness::run(2, [&](const World& world, Queue& queue) {
    Rank rank(Layer("cross_mini_batch_norm").set("sync", "world"), world, queue);
    rank.forward();
    if (world->rank() == 1) rank.norm.begin_batch(queue);
    const std::string message = error_of([&] { rank.forward(); });
    const std::lock_guard lock(mutex);
    messages.insert(message);
  });
  EXPECT_EQ(messages,
            std::set<std::string>{"mismatch: rank 1: cross_mini_batch_norm, call 1, forward: mini-batch of the batch "
                                  "is 0, must be 1 as on rank 0"});
}

TEST(Disagreement, ARankThatIsACallAheadIsNamed) {
  std::mutex mutex;
  std::set<std::string> messages;
  harness::run(2, [&](const World& world, Queue& queue) {
    Rank rank(Layer("sync_batch_norm"), world, queue);
    const Saved saved = rank.forward();
    const std::string message = error_of([&] {
      if (world->rank() == 0)
        rank.backward(saved);
      else
        rank.forward();
    });
    const std::lock_guard lock(mutex);
    messages.insert(message);
  });
  EXPECT_EQ(messages, std::set<std::string>{"mismatch: rank 1 is at sync_batch_norm, call 1, forward, must be at "
                                            "sync_batch_norm, call 0, backward as on rank 0"});
}

}  // namespace
}  // namespace layer_exchange_test
