// What --nonfinite promises, of every layer that has a state: who is named, what changes, and that the group goes on.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "calls.hpp"

namespace nonfinite_rules_test {
namespace {

using namespace allnorm;
using calls::Calls;
using harness::error_of;
using harness::World;
using reference::Doubles;

/// As calls::subjects(), but that no convolution's weights have to stay the same within a batch that is interrupted;
/// and those that whiten.
std::vector<calls::Subject> subjects() {
  std::vector<calls::Subject> all = calls::subjects();
  all[1] = {"cross_iteration_batch_norm:sync=world:window=3:minibatches=2:renorm=true:burn_in=1:compensate=false"};
  all.push_back({"iterative_norm:sync=world:group_size=2", {}});
  all.push_back({"decorrelated_batch_norm:sync=world:group_size=2", {}});
  return all;
}

class NonFiniteRules : public testing::TestWithParam<calls::Subject> {
 protected:
  void SetUp() override {
    if (parse_layer(GetParam().layer).row->attribute("nonfinite") == nullptr)
      GTEST_SKIP() << "the layer does not have the rules";
  }
  bool has_state() const { return parse_layer(GetParam().layer).has_state(); }
  /// What is told of a call's first value that is not finite.
  std::string told(const std::string& ranks, int call) const {
    const Layer layer = parse_layer(GetParam().layer);
    const bool channels = layer.statistics().has(Axis::channel) && !layer.statistics().has(Axis::sample);
    return ranks + ": " + std::string(layer.row->name) + ", call " + std::to_string(call) +
           ", forward: input is not finite in " + (channels ? "channel 0" : "group 0");
  }
  calls::Subject with(const std::string& rule) const {
    calls::Subject subject = GetParam();
    subject.layer += ":nonfinite=" + rule;
    return subject;
  }
  /// On three ranks 10 calls, of which call 6 has such a value on rank 1 and call 8 on ranks 0 and 2.
  void run(const std::string& rule, const std::function<void(Calls&, const World&, std::uint64_t call)>& body) const {
    harness::run(3, [&](const World& world, Queue& queue) {
      Calls own(with(rule), world, queue);
      for (std::uint64_t call = 0; call < 12; ++call) {
        own.prepare(call);
        if ((call == 6 && world->rank() == 1) || (call == 8 && world->rank() != 1)) own.poison(std::nan(""));
        body(own, world, call);
      }
      own.prepare(12);  // of a new batch
      own.make();
      for (const double value : own.results()) EXPECT_TRUE(std::isfinite(value));
    });
  }
};

TEST_P(NonFiniteRules, PropagateGoesOnWithoutTheChannel) {
  run("propagate", [&](Calls& own, const World& world, std::uint64_t call) {
    const auto before = own.state();
    const auto exchanges = world->traffic().exchanges;
    own.make();
    EXPECT_EQ(world->traffic().exchanges, exchanges + 1);
    if (call % 2 == 0 && has_state()) {
      EXPECT_NE(own.state(), before) << call;
    }
    if (call == 6) {
      EXPECT_EQ(own.nonfinite().last, told("rank 1", 3));
    }
    if (call == 8) {
      EXPECT_EQ(own.nonfinite().last, told("rank 0 and rank 2", 4));
    }
    EXPECT_EQ(own.nonfinite().calls, call < 6 ? 0 : call < 8 ? 1 : 2);
  });
}

TEST_P(NonFiniteRules, SkipUpdateChangesNoState) {
  std::vector<Doubles> propagated(3), skipped(3);
  run("propagate", [&](Calls& own, const World& world, std::uint64_t call) {
    own.make();
    if (call == 6) propagated[static_cast<std::size_t>(world->rank())] = own.results();
  });
  run("skip_update", [&](Calls& own, const World& world, std::uint64_t call) {
    const auto before = own.state();
    own.make();
    if (call == 6) skipped[static_cast<std::size_t>(world->rank())] = own.results();
    if (call == 6 || call == 8) {
      EXPECT_EQ(own.state(), before);
    }
    if (call == 8) {
      EXPECT_EQ(own.nonfinite().last, told("rank 0 and rank 2", 3));  // a call that was skipped keeps its number
    }
    EXPECT_EQ(own.nonfinite().calls, call < 6 ? 0 : call < 8 ? 1 : 2);
  });
  for (std::size_t r = 0; r < 3; ++r) {  // the output is as computed
    ASSERT_EQ(skipped[r].size(), propagated[r].size());
    for (std::size_t i = 0; i < skipped[r].size(); ++i)
      EXPECT_TRUE(skipped[r][i] == propagated[r][i] || (std::isnan(skipped[r][i]) && std::isnan(propagated[r][i])));
  }
}

TEST_P(NonFiniteRules, FailWritesAndChangesNothing) {
  run("fail", [&](Calls& own, const World&, std::uint64_t call) {
    if (call == 7 || call == 9) return;  // no forward call before it
    const auto state = own.state();
    const Doubles results = own.results();
    const std::string error = error_of([&] { own.make(); });
    if (call != 6 && call != 8) {
      EXPECT_EQ(error, "");
      return;
    }
    EXPECT_EQ(error,
              "non-finite: " + told(call == 6 ? "rank 1" : "rank 0 and rank 2", 3) + ", must be finite everywhere");
    EXPECT_EQ(own.state(), state);
    EXPECT_EQ(own.results(), results);
  });
}

INSTANTIATE_TEST_SUITE_P(Layers, NonFiniteRules, testing::ValuesIn(subjects()), [](const auto& layer) {
  const std::string& text = layer.param.layer;
  return text.substr(0, text.find(':'));
});

// Ranks that all see the flags, and a tree, which hands them on.
TEST(NonFiniteRanks, AreNamedGatheredAndAlongATree) {
  for (const int limit : {32, 1}) {
    Patience patience;
    patience.gather_limit = limit;
    harness::run(
        5,
        [](const World& world, Queue& queue) {
          Norm norm(parse_layer("sync_batch_norm"), 3, world, queue);
          Doubles x{1, 2, 3, 4, 5, 7}, y(6);
          if (world->rank() == 2) x[1] = HUGE_VAL;
          if (world->rank() == 4) x[2] = x[4] = std::nan("");
          ForwardInputs in;
          in.input = view(x.data(), Shape{2, 3});
          norm.forward(in, view(y.data(), Shape{2, 3}), queue);
          EXPECT_EQ(norm.nonfinite().last,
                    "rank 2 and rank 4: sync_batch_norm, call 0, forward: input is not finite in channel 1 and 1 more");
          EXPECT_EQ(world->traffic().exchanges, 1u);
        },
        patience);
  }
}

// Finite values whose moments are beyond the range of f64 only together.
TEST(NonFiniteRanks, AreNoneWhereTheirValuesAreSoTogether) {
  harness::run(2, [](const World& world, Queue& queue) {
    Norm norm(parse_layer("sync_batch_norm:nonfinite=fail"), 1, world, queue);
    Doubles x{world->rank() == 0 ? 1.5e308 : -1.5e308}, y(1);
    ForwardInputs in;
    in.input = view(x.data(), Shape{1, 1});
    EXPECT_EQ(
        error_of([&] {
          norm.forward(in, view(y.data(), Shape{1, 1}), queue);
        }),
        "non-finite: all ranks together: sync_batch_norm, call 0, forward: input is not finite in channel 0, must "
        "be finite everywhere");
  });
}

TEST(NonFiniteRanks, MustAgreeOnTheRule) {
  harness::run(2, [](const World& world, Queue& queue) {
    Norm norm(parse_layer(world->rank() == 0 ? "sync_batch_norm" : "sync_batch_norm:nonfinite=fail"), 1, world, queue);
    Doubles x{1, 2}, y(2);
    ForwardInputs in;
    in.input = view(x.data(), Shape{2, 1});
    EXPECT_EQ(error_of([&] {
                norm.forward(in, view(y.data(), Shape{2, 1}), queue);
              }),
              "mismatch: rank 1: sync_batch_norm, call 0, forward: nonfinite is fail, must be propagate as on rank 0");
  });
}

}  // namespace
}  // namespace nonfinite_rules_test
