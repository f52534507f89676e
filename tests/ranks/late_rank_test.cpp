// Who is blamed when a rank is late: it, and nobody who waits for it, in groups and in trees too.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "faulty_links.hpp"
#include "harness.hpp"
#include "src/exchange.hpp"

namespace late_rank_test {
namespace {

using namespace allnorm;
using harness::error_of;
using harness::World;

Patience patience_of(double seconds, int gather_limit = 32) {
  Patience patience;
  patience.timeout = patience.first_timeout = seconds;
  patience.gather_limit = gather_limit;
  return patience;
}

Message message(std::string_view name, std::uint64_t call = 0) {
  return {Header(name, Direction::forward, call), {1.0}, 0, {}};
}

// What each rank is told in `body`, and that the longest took no less than `least` and at most a second more, in
// seconds. `ranks_per_node`: as of faults::threads().
std::vector<std::string> told(int ranks, const Patience& patience, double least,
                              const std::function<void(const World&, Queue&)>& body, int ranks_per_node = 0) {
  std::vector<std::string> errors(static_cast<std::size_t>(ranks));
  const auto start = std::chrono::steady_clock::now();
  harness::run(faults::threads(ranks, {}, ranks_per_node, patience), [&](const World& world, Queue& queue) {
    errors[static_cast<std::size_t>(world->rank())] = error_of([&] { body(world, queue); });
  });
  const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_GE(took, least);
  EXPECT_LE(took, least + 1);
  return errors;
}

TEST(LateRank, IsNamedAfterTheDeadline) {
  const auto call = [](const World& world, Queue& queue) {
    if (world->rank() != 2) world->exchange(message("bn", 5), queue);
  };
  for (const int ranks_per_node : {0, 3}) {
    const auto errors = told(3, patience_of(1.2), 1.2, call, ranks_per_node);
    for (const int rank : {0, 1})
      EXPECT_EQ(errors[static_cast<std::size_t>(rank)],
                "timeout: bn, call 5, forward: rank 2 is missing, not done after 1.2 s");
  }
}

TEST(LateRank, IsToldWithTheCallThatItWasLastHeardOfAt) {
  const auto errors = told(4, patience_of(0.2), 0.2, [](const World& world, Queue& queue) {
    world->exchange(message("bn", 5), queue);
    if (world->rank() % 2 == 0) world->exchange(message("bn", 6), queue);
  });
  const std::string both =
      "timeout: bn, call 6, forward: rank 1 and rank 3 are missing, not done after 0.2 s; rank 1 was last heard of at "
      "bn, call 5, forward; rank 3 was last heard of at bn, call 5, forward";
  EXPECT_EQ(errors[0], both);
  EXPECT_EQ(errors[2], both);
}

// A message that is not there may be that of a rank which itself waits: of this group or of another one.
TEST(LateRank, WhoWaitsForItIsNotBlamed) {
  const auto errors = told(4, patience_of(0.4), 0.4, [](const World& world, Queue& queue) {
    const World group = sync_group(world, Sync{2}, queue);
    if (world->rank() == 2) return;
    group->exchange(message("bn"), queue);
    world->exchange(message("all"), queue);
  });
  EXPECT_EQ(errors[3],
            "timeout: bn, call 0, forward: rank 2 is missing, not done after 0.4 s; rank 2 was last heard of at split, "
            "call 0, split");
  for (const int rank : {0, 1})
    EXPECT_EQ(errors[static_cast<std::size_t>(rank)],
              "timeout: all, call 0, forward: rank 2 is missing, not done after 0.4 s; rank 2 was last heard of at "
              "split, call 0, split; rank 3 waits for rank 2 at bn, call 0, forward");
}

// Of the others, how many name it and it alone.
int named_by(int ranks, int absent, const Patience& patience, int ranks_per_node = 0) {
  const std::string expected = "timeout: bn, call 0, forward: rank " + std::to_string(absent) +
                               " is missing, not done after " + (patience.timeout < 1 ? "0.4 s" : "1 s");
  int named = 0;
  const auto call = [&](const World& world, Queue& queue) {
    if (world->rank() != absent) world->exchange(message("bn"), queue);
  };
  for (const std::string& error : told(ranks, patience, patience.timeout, call, ranks_per_node))
    named += error.starts_with(expected);
  return named;
}

// Ranks that pass on what they have wait for others than the one that is late.
TEST(LateRank, OfRanksThatPassOnIsNamedByAll) {
  for (const int ranks_per_node : {9, 3})
    for (const int absent : {0, 2, 8})
      EXPECT_EQ(named_by(9, absent, patience_of(0.4), ranks_per_node), 8) << absent << ", " << ranks_per_node;
}
TEST(LateRank, OfManyThatShareMemoryIsNamedByAll) {
  for (const int absent : {0, 8}) EXPECT_EQ(named_by(9, absent, patience_of(0.4)), 8) << absent;
}
TEST(LateRank, InATreeIsNamedByAll) {
  for (const int absent : {0, 4, 5, 6})  // the root, an inner node, leaves
    EXPECT_EQ(named_by(7, absent, patience_of(0.4, 1)), 6) << absent;
}
TEST(LateRank, OfManyIsNamedByAll) { EXPECT_EQ(named_by(40, 37, patience_of(1)), 39); }

TEST(LateRank, IsNobodyWhereAllWaitForEachOther) {
  const auto errors = told(2, patience_of(0.4), 0.4, [](const World& world, Queue& queue) {
    const World pair = world->split(0, queue);
    (world->rank() == 0 ? world : pair)->exchange(message("bn", world->rank() == 0 ? 1 : 2), queue);
  });
  const std::string nobody = "forward: no rank is missing, they wait for each other, not done after 0.4 s; ";
  EXPECT_EQ(errors[0], "timeout: bn, call 1, " + nobody + "rank 1 waits for rank 0 at bn, call 2, forward");
  EXPECT_EQ(errors[1], "timeout: bn, call 2, " + nobody + "rank 0 waits for rank 1 at bn, call 1, forward");
}

// Every rank that waits warns once, at half of the deadline and when it has asked, and reports before it fails; one of
// them is to speak.
TEST(LateRank, IsWarnedOfAndReported) {
  struct Told {
    LateReport late;
    double after;  // seconds
  };
  std::mutex mutex;
  std::vector<Told> warnings, reports;
  const auto start = std::chrono::steady_clock::now();
  const auto into = [&](std::vector<Told>& all) {
    return [&](const LateReport& late) {
      const std::lock_guard lock(mutex);
      all.push_back({late, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()});
    };
  };
  Patience patience = patience_of(4);
  patience.warn = into(warnings);
  patience.report = into(reports);
  const auto errors = told(3, patience, 4, [](const World& world, Queue& queue) {
    if (world->rank() != 1) world->exchange(message("bn", 5), queue);
  });
  ASSERT_EQ(warnings.size(), 2u);
  ASSERT_EQ(reports.size(), 2u);
  for (const auto* all : {&warnings, &reports}) {
    EXPECT_EQ((*all)[0].late.speaks + (*all)[1].late.speaks, 1);
    for (const Told& told : *all) {
      const LateReport& late = told.late;
      EXPECT_EQ(late.speaks, late.rank == 0);
      ASSERT_EQ(late.ranks.size(), 3u);
      EXPECT_EQ(late.ranks[1].is, LateRank::Is::missing);
      EXPECT_EQ(late.ranks[1].layer, "");
      for (const std::size_t rank : {0u, 2u}) {
        EXPECT_EQ(late.ranks[rank].is, LateRank::Is::waiting);
        EXPECT_EQ(late.ranks[rank].name, "rank " + std::to_string(rank));
        EXPECT_EQ(late.ranks[rank].layer, "bn");
        EXPECT_EQ(late.ranks[rank].call, 5u);
        EXPECT_EQ(late.ranks[rank].direction, "forward");
        EXPECT_EQ(late.ranks[rank].pid, ::getpid());
        EXPECT_NE(late.ranks[rank].host, "");
        EXPECT_GE(late.ranks[rank].seconds, all == &warnings ? 1.9 : 2.9);  // when it was asked
        EXPECT_LE(late.ranks[rank].seconds, told.after);
      }
    }
  }
  for (const Told& warning : warnings) {
    EXPECT_TRUE(warning.late.line.starts_with("bn, call 5, forward: rank 1 is missing, waiting for "))
        << warning.late.line;
    EXPECT_TRUE(warning.late.line.ends_with(" of 4 s")) << warning.late.line;
    EXPECT_GE(warning.after, 2);
    EXPECT_LE(warning.after, 3.5);
  }
  for (const Told& report : reports) {
    EXPECT_EQ("timeout: " + report.late.line, errors[static_cast<std::size_t>(report.late.rank)]);
    EXPECT_GE(report.after, 4);
  }
}

// One that only waits for others is not missing, and one that nobody waits for is elsewhere.
TEST(LateRank, IsToldFromOneThatIsElsewhere) {
  std::mutex mutex;
  std::vector<LateReport> reports;
  Patience patience = patience_of(0.6);
  patience.report = [&](const LateReport& late) {
    const std::lock_guard lock(mutex);
    reports.push_back(late);
  };
  told(4, patience, 0.6, [](const World& world, Queue& queue) {
    const World pair = sync_group(world, Sync{2}, queue);
    if (world->rank() == 0) pair->exchange(message("bn"), queue);
  });
  ASSERT_EQ(reports.size(), 1u);
  ASSERT_EQ(reports[0].ranks.size(), 2u);  // of its group
  EXPECT_EQ(reports[0].ranks[1].is, LateRank::Is::missing);
  EXPECT_EQ(reports[0].ranks[1].layer, "split");
}

// It says goodbye: nobody waits for the deadline, and what it sent before counts.
TEST(LateRank, ThatHasLeftIsNamedAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  auto worlds = threads(2, patience_of(60));
  std::thread other([&] {
    Queue queue = Queue::cpu();
    worlds[1]->exchange(message("bn"), queue);
    worlds[1].reset();
  });
  Queue queue = Queue::cpu();
  Pending first = worlds[0]->start_exchange(message("bn"), queue);
  other.join();
  EXPECT_EQ(first.wait().payload, std::vector<double>{2});
  EXPECT_EQ(error_of([&] { worlds[0]->exchange(message("bn", 1), queue); }),
            "aborted: bn, call 1, forward: rank 1 has left; rank 1 was last heard of at bn, call 0, forward");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(LateRank, TheFirstExchangeHasItsOwnDeadline) {
  Patience patience = patience_of(0.05);
  patience.first_timeout = 30;
  harness::run(
      2,
      [](const World& world, Queue& queue) {
        if (world->rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
        world->exchange(message("bn"), queue);
      },
      patience);
}

TEST(LateRank, ClockAndWaitingAreTheCallers) {
  std::atomic<int> relaxed{0};
  std::atomic<double> clock{0};
  Patience patience = patience_of(1000);
  patience.now = [&] { return clock.load(); };
  patience.relax = [&] {
    clock = clock + 10;
    ++relaxed;
  };
  const auto error = error_of([&] {
    harness::run(
        2,
        [](const World& world, Queue& queue) {
          if (world->rank() == 0) world->exchange(message("bn"), queue);
        },
        patience);
  });
  EXPECT_EQ(error, "timeout: bn, call 0, forward: rank 1 is missing, not done after 1000 s");
  EXPECT_GT(relaxed, 0);
}

// Rank 0 of 2 on two hosts: what rank 1 sends it is known, and whether it takes anything.
class OnePeer final : public Links {
 public:
  explicit OnePeer(bool sends) : sends_(sends) {}
  int rank() const noexcept override { return 0; }
  int size() const noexcept override { return 2; }
  std::string_view transport() const noexcept override { return "a test"; }
  void post(std::span<const int>, std::uint64_t tag, std::shared_ptr<const Bytes> bytes) override {
    if (tag >> 32 == 0) own_ = std::move(bytes);
  }
  std::shared_ptr<const Bytes> poll(int, std::uint64_t tag) override {
    return sends_ && tag >> 32 == 0 ? std::exchange(own_, nullptr) : nullptr;
  }
  std::vector<int> unsent(std::uint64_t) override { return {1}; }
  void abort(const Error&) noexcept override {}
  std::string name_of(int rank) const override { return "rank " + std::to_string(rank) + " (node7)"; }

 private:
  bool sends_;
  std::shared_ptr<const Bytes> own_;
};

TEST(LateRank, IsNamedWhereItTakesNothing) {
  Queue queue = Queue::cpu();
  const auto world = communicate(std::make_shared<OnePeer>(true), patience_of(0.1));
  EXPECT_EQ(error_of([&] { world->exchange(message("bn", 3), queue); }),
            "timeout: bn, call 3, forward: rank 1 (node7) is missing, not done after 0.1 s; rank 1 (node7) was last "
            "heard of at bn, call 3, forward");
}

TEST(LateRank, IsOverdueForOtherThreads) {
  Queue queue = Queue::cpu();
  const auto world = communicate(std::make_shared<OnePeer>(false), patience_of(0.1));
  EXPECT_LT(overdue(*world), 0);
  {
    const Pending first = world->start_exchange(message("bn"), queue);
    EXPECT_LT(overdue(*world), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    {
      const Pending second = world->start_exchange(message("bn"), queue);
      EXPECT_GT(overdue(*world), 0.04);
    }
    EXPECT_GT(overdue(*world), 0.04);
  }
  EXPECT_LT(overdue(*world), 0);
}

TEST(Names, OfRanksInGroupsAreThoseOfTheWorld) {
  harness::run(4, [](const World& world, Queue& queue) {
    const World pair = sync_group(world, Sync{2}, queue);
    const int first = world->rank() / 2 * 2, second = first + 1;
    const std::string name_of_first = "rank " + std::to_string(first),
                      name_of_second = "rank " + std::to_string(second);
    EXPECT_EQ(pair->name_of(0), name_of_first);
    EXPECT_EQ(pair->name_of(1), name_of_second);
    EXPECT_EQ(sync_group(world, Sync{Sync::none}, queue)->name_of(0), world->name_of(world->rank()));

    const bool odd = world->rank() == second;
    Message layer = message("bn");
    write_layer(parse_layer(odd ? "batch_norm:eps=1e-3" : "batch_norm"), layer.header);
    EXPECT_EQ(
        error_of([&] { pair->exchange(layer, queue); }),
        "mismatch: " + name_of_second + ": bn, call 0, forward: eps is 0.001, must be 1e-05 as on " + name_of_first);
    EXPECT_EQ(error_of([&] { pair->exchange(message("bn", odd ? 2 : 1), queue); }),
              "mismatch: " + name_of_second + " is at bn, call 2, forward, must be at bn, call 1, forward as on " +
                  name_of_first);
    if (odd)
      pair->decline(Error(Code::invalid_input, "weight is wrong"));
    else
      EXPECT_EQ(error_of([&] { pair->exchange(message("bn"), queue); }),
                "aborted: " + name_of_second + " failed: weight is wrong");
  });
}

TEST(Names, OfManyAreNotAllShown) {
  std::vector<std::string> names;
  for (const char* name : {"a", "b", "c", "d", "e", "f", "g", "h"}) names.emplace_back(name);
  EXPECT_EQ(are_missing({"a"}), "a is missing");
  EXPECT_EQ(are_missing({"a", "b"}), "a and b are missing");
  EXPECT_EQ(are_missing(names), "a, b, c, d, e, f, g and h are missing");
  names.emplace_back("i");
  EXPECT_EQ(are_missing(names), "a, b, c, d, e, f, g and 2 more are missing");
}

}  // namespace
}  // namespace late_rank_test
