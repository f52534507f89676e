// Many exchanges with random delays: no wrong sum, and neither memory nor descriptors grow. ALLNORM_SOAK=N: N
// exchanges.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "allocations.hpp"
#include "cases.hpp"
#include "harness.hpp"

namespace soak_test {

// There where the program is linked with the sanitizer, whatever this file is compiled with.
extern "C" [[gnu::weak]] void __asan_init();
extern "C" [[gnu::weak]] void __tsan_init();

namespace {

using namespace allnorm;
using harness::World;

const bool keeps_what_was_freed = __asan_init != nullptr || __tsan_init != nullptr;

std::int64_t exchanges_asked_for() {
  const char* const given = std::getenv("ALLNORM_SOAK");
  return given == nullptr ? 2'000 : std::max(std::int64_t{10'000}, std::int64_t{std::atoll(given)});
}

std::int64_t descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return std::distance(all, std::filesystem::directory_iterator());
}
// Pages of the process in memory.
std::int64_t resident() {
  std::int64_t size = 0, pages = 0;
  std::ifstream("/proc/self/statm") >> size >> pages;
  return pages;
}

struct Use {
  std::int64_t blocks = 0, descriptors = 0, pages = 0;
};

// All ranks have made their exchanges before one of them looks, and none goes on meanwhile.
Use use_of_all(const World& world, Queue& queue) {
  const auto meet = [&] { world->exchange({Header("soak", Direction::agreement, 0), {}, 0, {}}, queue); };
  Use use;
  meet();
  if (world->rank() == 0) use = {allocations::alive(), descriptors(), resident()};
  meet();
  return use;
}

// One exchange in 64 is late by up to 0.2 ms.
void exchange(const World& world, Queue& queue, cases::Random& random, std::uint64_t call) {
  if (random.integer(0, 63) == 0) std::this_thread::sleep_for(std::chrono::microseconds(random.integer(0, 200)));
  const double own = world->rank() + 1, number = static_cast<double>(call % 1000);
  const Message sum = world->exchange({Header("soak", Direction::forward, call), {own, own * number, 1}, 0, {}}, queue);
  ASSERT_EQ(sum.payload, (std::vector<double>{10, 10 * number, 4})) << call;
}

TEST(Soak, ManyExchangesLeaveMemoryAndDescriptorsFlat) {
  const std::int64_t exchanges = exchanges_asked_for(), warm_up = exchanges / 10;
  harness::run(4, [&](const World& world, Queue& queue) {
    cases::Random random(40 + static_cast<std::uint64_t>(world->rank()));
    const World pair = sync_group(world, Sync{2}, queue);
    Use before;
    for (std::int64_t call = 0; call < exchanges; ++call) {
      if (call == warm_up) before = use_of_all(world, queue);
      exchange(world, queue, random, static_cast<std::uint64_t>(call));
      if (testing::Test::HasFatalFailure()) return;
      if (call % 16 == 0) pair->exchange({Header("pair", Direction::forward, 0), {1}, 0, {}}, queue);
    }
    const Use after = use_of_all(world, queue);
    if (world->rank() != 0) return;
    // the other ranks may have sent their next message, or not yet
    EXPECT_NEAR(static_cast<double>(after.blocks), static_cast<double>(before.blocks), 200);
    EXPECT_EQ(after.descriptors, before.descriptors);
    if (!keeps_what_was_freed) {
      EXPECT_LE(after.pages, before.pages + 256);
    }
  });
}

}  // namespace
}  // namespace soak_test
