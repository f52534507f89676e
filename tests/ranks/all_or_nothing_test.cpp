// A call that fails leaves the state as it was, wherever it fails: memory is refused at every block that it asks for.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "allocations.hpp"
#include "calls.hpp"

namespace all_or_nothing_test {
namespace {

using namespace allnorm;
using calls::Calls;
using harness::error_of;
using harness::World;

bool is_want_of_memory(const std::string& error) { return error.starts_with("device: out of memory"); }

class AllOrNothing : public testing::TestWithParam<calls::Subject> {};

// Calls 0 to 5 fill a window and open a batch; with mini-batches call 6 closes one, 8 starts the next.
constexpr std::uint64_t first_broken = 6, last_broken = 9;

TEST_P(AllOrNothing, ALoneRankThatHasNoMemory) {
  Queue queue = Queue::cpu();
  Calls own(GetParam(), self(), queue), right(GetParam(), self(), queue);
  for (std::uint64_t call = 0; call <= last_broken; ++call) {
    own.prepare(call);
    right.prepare(call);
    right.make();
    const auto before = own.state();
    bool done = false;
    for (std::int64_t more = 0; call >= first_broken && !done; ++more) {
      ASSERT_LT(more, 10000);
      bool refused = false;
      const std::string error = error_of([&] {
        const allocations::Refusal refusal(more);
        try {
          own.make();
        } catch (...) {
          refused = refusal.happened();
          throw;
        }
        done = !refusal.happened();
      });
      if (error.empty()) {
        ASSERT_TRUE(done) << more;  // what is refused is not passed over
        break;
      }
      ASSERT_TRUE(refused && is_want_of_memory(error)) << error;
      ASSERT_EQ(own.state(), before) << "call " << call << ", block " << more;
    }
    if (!done) own.make();
    EXPECT_EQ(own.results(), right.results()) << call;
    EXPECT_EQ(own.state(), right.state()) << call;
  }
}

// What a rank made of calls 0 to `last`, without a failure.
std::vector<reference::Doubles> clean_results(const calls::Subject& subject, std::uint64_t last, int rank) {
  std::vector<reference::Doubles> results(last + 1);
  harness::run(2, [&](const World& world, Queue& queue) {
    Calls own(subject, world, queue);
    for (std::uint64_t call = 0; call <= last; ++call) {
      own.prepare(call);
      own.make();
      if (world->rank() == rank) results[call] = own.results();
    }
  });
  return results;
}

/// Of two ranks rank 1 is refused block number `more` of a call, if it asks for as many; then both make it again.
struct Broken {
  bool refused = false;
  std::string first[2]{}, again[2]{};
  reference::Doubles results[2]{};
};
Broken break_a_call(const calls::Subject& subject, std::uint64_t broken, std::int64_t more) {
  Broken all;
  Patience patience;
  patience.timeout = patience.first_timeout = 30;
  harness::run(
      2,
      [&](const World& world, Queue& queue) {
        const auto r = static_cast<std::size_t>(world->rank());
        Calls own(subject, world, queue);
        for (std::uint64_t call = 0; call <= broken; ++call) {
          own.prepare(call);
          if (call < broken) own.make();
        }
        const auto before = own.state();
        all.first[r] = error_of([&] {
          const allocations::Refusal refusal(r == 1 ? more : allocations::Refusal::none);
          try {
            own.make();
          } catch (...) {
            if (r == 1) all.refused = refusal.happened();
            throw;
          }
        });
        if (!all.first[r].empty()) {
          EXPECT_EQ(own.state(), before);
        }
        all.again[r] = error_of([&] { own.make(); });
        all.results[r] = own.results();
      },
      patience);
  return all;
}

TEST_P(AllOrNothing, OneOfTwoRanksThatHasNoMemory) {
  const std::vector<reference::Doubles> right[] = {clean_results(GetParam(), last_broken, 0),
                                                   clean_results(GetParam(), last_broken, 1)};
  for (std::uint64_t call = first_broken; call <= last_broken; ++call)
    for (std::int64_t more = 0;; ++more) {
      SCOPED_TRACE("call " + std::to_string(call) + ", block " + std::to_string(more));
      const Broken all = break_a_call(GetParam(), call, more);
      if (!all.refused) {
        EXPECT_EQ(all.first[0] + all.first[1], "");
        break;
      }
      EXPECT_TRUE(is_want_of_memory(all.first[1])) << all.first[1];
      const bool alone = all.first[0].empty();  // the exchange was over, and rank 0 has made the call
      EXPECT_TRUE(alone || all.first[0].starts_with("aborted: rank 1 failed: out of memory")) << all.first[0];
      for (const std::size_t r : {0u, 1u}) {
        if (alone && call % 2 == 0) {
          EXPECT_NE(all.again[r].find("mismatch: rank 1 is at "), std::string::npos) << all.again[r];
          continue;
        }
        EXPECT_EQ(all.again[r], "");
        EXPECT_EQ(all.results[r], right[r][call]);
      }
    }
}

INSTANTIATE_TEST_SUITE_P(Layers, AllOrNothing, testing::ValuesIn(calls::subjects()), [](const auto& layer) {
  const std::string& text = layer.param.layer;
  return text.substr(0, text.find(':'));
});

}  // namespace
}  // namespace all_or_nothing_test
