// Operations whose steps write and judge the records of ranks: what ranks that disagree, or decline, leave on a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gpu/operation_step.hpp"
#include "gpu/records.hpp"
#include "harness.hpp"

namespace allnorm::test {
namespace {

using step_test::OperationStep;
using Bytes = std::vector<std::byte>;

std::vector<Bytes> state_of(OperationStep& step) {
  std::vector<Bytes> all;
  for (const StateEntry& entry : step.operation->save(step.queue).entries) all.push_back(entry.data);
  return all;
}

template <class Predicate>
bool all_of(const TensorView& view, const Predicate& predicate) {
  const auto* const values = static_cast<const float*>(view.data);
  return std::all_of(values, values + view.elements(), predicate);
}
constexpr auto is_nan = [](float v) { return std::isnan(v); };
constexpr auto is_finite = [](float v) { return std::isfinite(v); };

// The first exchange of a group goes through the host, which compares heads itself: all of these come later.
void on_threads(const std::function<void(int rank, const std::shared_ptr<Communicator>& world, Queue& queue)>& body) {
  const auto worlds = threads(3);
  on_ranks(3, [&](int rank) {
    Queue queue = backend::queue();
    body(rank, worlds[static_cast<std::size_t>(rank)], queue);
    queue.wait();
  });
}
constexpr const char* layers[] = {"switchable_norm", "switchable_norm:shard=space"};

TEST(OperationExchange, RanksThatDisagreeChangeNothing) {
  for (const std::string layer : layers) {
    SCOPED_TRACE(layer);
    on_threads([&](int rank, const std::shared_ptr<Communicator>& world, Queue& queue) {
      OperationStep step(parse_layer(layer), queue, world), other(parse_layer(layer), queue, world);
      for (int call = 0; call < 2; ++call) step.run();
      other.operation->load(step.operation->save(queue), queue);
      const auto before = state_of(step);
      other.run();  // another object, whose calls are counted anew
      OperationStep& own = rank == 1 ? other : step;
      own.forward();
      EXPECT_EQ(found_by(*world),
                "mismatch: rank 1 is at switchable_norm, call 1, forward, must be at switchable_norm, "
                "call 2, forward as on rank 0");
      queue.wait();
      EXPECT_TRUE(all_of(own.output, is_nan));
      EXPECT_EQ(state_of(step), before);
      step.run();  // the group goes on
      queue.wait();
      EXPECT_TRUE(all_of(step.output, is_finite));
      EXPECT_NE(state_of(step), before);
      EXPECT_NO_THROW(world->check());
    });
  }
}

TEST(OperationExchange, ARankMayDeclineBackward) {
  for (const std::string layer : layers) {
    SCOPED_TRACE(layer);
    on_threads([&](int rank, const std::shared_ptr<Communicator>& world, Queue& queue) {
      OperationStep step(parse_layer(layer), queue, world);
      for (int call = 0; call < 2; ++call) step.run();
      step.forward();
      if (rank == 2) {
        world->decline(Error(Code::invalid_argument, "eps is -1"));
      } else {
        step.backward();
        EXPECT_EQ(found_by(*world), "aborted: rank 2 failed: eps is -1");
        queue.wait();
        EXPECT_TRUE(all_of(step.gradients["grad_input"], is_nan));
        EXPECT_TRUE(all_of(step.gradients["grad_weight"], is_finite));  // this rank's own
      }
      step.run();
      queue.wait();
      EXPECT_TRUE(all_of(step.gradients["grad_input"], is_finite));
      EXPECT_NO_THROW(world->check());
    });
  }
}

}  // namespace
}  // namespace allnorm::test
