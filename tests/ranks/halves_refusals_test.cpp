// What halves refuse, on which rank and in which words; and how they keep what they change.
#include <gtest/gtest.h>

#include <limits>
#include <utility>

#include "halves_support.hpp"

namespace halves_refusals_test {
namespace {

using namespace allnorm;
using namespace halves_support;
using harness::error_of;

const Case plain{"Plain", "sync_batch_norm", false, false, {2, 0, 3}};

struct Ranks {
  explicit Ranks(const Case& c) : queue(Queue::cpu()), callers(callers_of(c, queue)) {
    for (std::size_t r = 0; r < callers.size(); ++r) steps.emplace_back(c, 0, static_cast<int>(r));
  }
  ByteArray first_halves() {
    for (std::size_t r = 0; r < callers.size(); ++r) callers[r].forward_local(steps[r]);
    return gathered(callers, queue);
  }
  std::string second_half(std::size_t rank, const ByteArray& records) {
    return error_of([&] { callers[rank].forward_finish(steps[rank], records); });
  }

  Queue queue;
  std::vector<Caller> callers;
  std::vector<Step> steps;
};

TEST(Halves, ARankThatCannotTakePartSaysWhyToAll) {
  Ranks ranks(plain);
  const Shape right = ranks.steps[1].inputs().weight.shape;
  ranks.steps[1].inputs().weight.shape = Shape{3};
  const ByteArray records = ranks.first_halves();
  const std::string why = "weight has shape (3,), must have (4,)";
  EXPECT_EQ(ranks.second_half(0, records), "aborted: rank 1 failed: " + why);
  EXPECT_EQ(ranks.second_half(1, records), "invalid input: " + why);
  EXPECT_EQ(ranks.second_half(2, records), "aborted: rank 1 failed: " + why);
  EXPECT_EQ(ranks.callers[0].tracked(), 0);
  ranks.steps[1].inputs().weight.shape = right;  // and the layer goes on
  const ByteArray again = ranks.first_halves();
  for (std::size_t r = 0; r < 3; ++r) EXPECT_EQ(ranks.second_half(r, again), "");
  EXPECT_EQ(ranks.callers[0].tracked(), 1);
}

TEST(Halves, ARankThatDiffersIsNamedWithItsField) {
  Ranks ranks(plain);
  ranks.callers[2] = Caller(plain, "sync_batch_norm:eps=0.5", 2, ranks.queue);
  const ByteArray records = ranks.first_halves();
  const std::string all = "mismatch: rank 2: layer, call 0, forward: eps is 0.5, must be 1e-05 as on rank 0";
  for (std::size_t r = 0; r < 3; ++r) EXPECT_EQ(ranks.second_half(r, records), all);

  ByteArray heads;  // alone they tell the same
  for (const Caller& caller : ranks.callers)
    heads.insert(heads.end(), caller.record().begin(),
                 caller.record().begin() + static_cast<std::ptrdiff_t>(Halves::head_bytes));
  for (Caller& caller : ranks.callers)
    EXPECT_EQ(error_of([&] { caller.halves().expect_agreement(heads.data(), Halves::head_bytes); }), all);
}

TEST(Halves, ALayerThatIsToFailNamesTheRankWhoseInputIsNotFinite) {
  const Case c{"Fails", "sync_batch_norm:nonfinite=fail", false, false, {2, 0, 3}};
  Ranks ranks(c);
  auto* const x = static_cast<double*>(const_cast<void*>(ranks.steps[2].inputs().input.data));
  const double finite = std::exchange(x[4], std::numeric_limits<double>::infinity());
  const ByteArray records = ranks.first_halves();
  for (std::size_t r = 0; r < 3; ++r) {
    EXPECT_EQ(
        ranks.second_half(r, records),
        "non-finite: rank 2: layer, call 0, forward: input is not finite in channel 1, must be finite everywhere");
    EXPECT_EQ(ranks.callers[r].tracked(), 0);
  }
  x[4] = finite;
  const ByteArray again = ranks.first_halves();
  for (std::size_t r = 0; r < 3; ++r) EXPECT_EQ(ranks.second_half(r, again), "");
}

TEST(Halves, RecordsMustBeOfTheCall) {
  Ranks ranks(plain);
  const ByteArray forward = ranks.first_halves();
  for (std::size_t r = 0; r < 3; ++r) ranks.callers[r].forward_finish(ranks.steps[r], forward);
  for (std::size_t r = 0; r < 3; ++r) ranks.callers[r].backward_local(ranks.steps[r]);
  ByteArray backward = gathered(ranks.callers, ranks.queue);
  backward.resize(forward.size());
  EXPECT_EQ(error_of([&] { ranks.callers[0].backward_finish(ranks.steps[0], forward); }),
            "invalid argument: the records are of layer, call 0, forward, must be of this call's first half");
  EXPECT_EQ(error_of([&] { Halves(Layer("batch_norm"), 4, 3, 3, ranks.queue); }),
            "invalid argument: rank is 3, must be from 0 to 2 of 3 ranks");
}

TEST(Halves, AHistoryIsKnownByItsBeginning) {
  const Case c{"Window", "cross_iteration_batch_norm:window=3:compensate=false", false, false, {3}};
  Ranks ranks(c);
  Caller& caller = ranks.callers[0];
  ByteArray records = ranks.first_halves();
  EXPECT_FALSE(caller.halves().has_entries(caller.history()));
  EXPECT_EQ(ranks.second_half(0, records), "");
  EXPECT_TRUE(caller.halves().has_entries(caller.history()));

  Caller wrong(c, "cross_iteration_batch_norm:window=2:compensate=false", 0, ranks.queue);
  wrong.history() = caller.history();
  wrong.forward_local(ranks.steps[0]);
  EXPECT_EQ(error_of([&] { wrong.forward_finish(ranks.steps[0], records); }),
            "invalid input: the window of the history is 3, must be 2");
  caller.history()[8] = std::byte{9};
  EXPECT_EQ(ranks.second_half(0, records), "invalid input: the version of the history is 9, must be 1");
  caller.history()[0] = std::byte{0};
  EXPECT_EQ(ranks.second_half(0, records), "invalid input: the history, of " + std::to_string(caller.history().size()) +
                                               " bytes, is none: it must be as start_history() made it");
  caller.history().clear();
  EXPECT_EQ(ranks.second_half(0, records),
            "invalid argument: a history is missing, must be given for cross_iteration_batch_norm as it is");
}

// The bytes are the layer: a copy of them goes on as it does.
TEST(Halves, CopiedBytesGoOnToTheSameBits) {
  const Case c{"Composed", "cross_iteration_batch_norm:window=3:minibatches=2:renorm=true", false, true, {3}};
  Queue queue = Queue::cpu();
  Caller first(c, c.layer, 0, queue), second(c, c.layer, 0, queue);
  for (int i = 0; i < 5; ++i) {
    Step step(c, i, 0), copied(c, i, 0);
    if (i == 2) second.copy_state_of(first);
    first.forward_local(step);
    first.forward_finish(step, {});
    if (i < 2) continue;
    second.forward_local(copied);
    second.forward_finish(copied, {});
    EXPECT_EQ(copied.results(), step.results()) << "step " << i;
    EXPECT_EQ(second.history(), first.history()) << "step " << i;
  }
}

// What is stored is the rounding of the update in double, as where a Norm is given the stored values before each call.
TEST(Halves, RunningStatisticsAreKeptInTheTypeOfTheirBuffers) {
  Queue queue = Queue::cpu();
  const Halves halves(Layer("batch_norm"), channels, 0, 1, queue);
  Norm norm(Layer("batch_norm"), channels, nullptr, queue);
  std::vector<float> mean(channels, 0.0f), var(channels, 1.0f);
  std::vector<f16> half_mean(channels, to_f16(0.0f)), half_var(channels, to_f16(1.0f));
  std::int64_t tracked = 0, half_tracked = 0;
  const auto call = [&](const Step& step, const KeptState& state) {
    Doubles frame(static_cast<std::size_t>(halves.frame_size(channels)));
    ByteArray work(halves.work_bytes(step.inputs()));
    halves.forward_finish(step.inputs(), step.output(), state, {frame.data(), nullptr}, work.data(), nullptr, queue);
  };
  for (int i = 0; i < 3; ++i) {
    const Step step({"", "batch_norm", false, false, {4}}, i, 0);
    norm.set_running({{mean.begin(), mean.end()}, {var.begin(), var.end()}, i}, queue);
    norm.forward(step.inputs(), step.output(), queue);
    const RunningStatistics expected = norm.running(queue);
    call(step, {view(mean.data(), {channels}), view(var.data(), {channels}), view(&tracked, {1}), {}});
    call(step, {view(half_mean.data(), {channels}), view(half_var.data(), {channels}), view(&half_tracked, {1}), {}});
    for (std::size_t c = 0; c < mean.size(); ++c) {
      EXPECT_EQ(mean[c], static_cast<float>(expected.mean[c]));
      EXPECT_EQ(var[c], static_cast<float>(expected.spread[c]));
      EXPECT_NEAR(to_float(half_mean[c]), expected.mean[c], 3e-3);
    }
    EXPECT_EQ(tracked, i + 1);
  }
  EXPECT_EQ(half_tracked, 3);
}

}  // namespace
}  // namespace halves_refusals_test
