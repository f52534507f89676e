// The exchange among threads, in memory that they share, by messages and along a tree, and what happens when a rank
// fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "exchange_cases.hpp"
#include "faulty_links.hpp"
#include "src/exchange.hpp"

namespace exchange_test {
namespace {

using namespace allnorm;
using harness::error_of;
using harness::World;

struct Group {
  int ranks;
  int gather_limit;
  int ranks_per_node = 0;  // 0: they share memory
};
std::string name_of(const testing::TestParamInfo<Group>& info) {
  const Group& group = info.param;
  if (group.ranks > group.gather_limit) return std::to_string(group.ranks) + "RanksInATree";
  return std::to_string(group.ranks) + "RanksGathered" +
         (group.ranks_per_node > 0 ? "OnNodesOf" + std::to_string(group.ranks_per_node) : "");
}
void run_group(const Group& group, const harness::Body& body) {
  Patience patience;
  patience.gather_limit = group.gather_limit;
  harness::run(faults::threads(group.ranks, {}, group.ranks_per_node, patience), body);
}

class Exchange : public testing::TestWithParam<Group> {
 protected:
  void run(const harness::Body& body) const { run_group(GetParam(), body); }
};

TEST_P(Exchange, SumsAreExact) { run(exchange_cases::sums_are_exact); }
TEST_P(Exchange, MomentsAreMerged) { run(exchange_cases::moments_are_merged); }
TEST_P(Exchange, ExchangesOverlap) { run(exchange_cases::exchanges_overlap); }
TEST_P(Exchange, ARankMayDecline) { run(exchange_cases::a_rank_may_decline); }
TEST_P(Exchange, SplitsAreIndependent) { run(exchange_cases::splits_are_independent); }

INSTANTIATE_TEST_SUITE_P(Groups, Exchange,
                         testing::Values(Group{1, 32}, Group{2, 32}, Group{3, 32}, Group{4, 32}, Group{5, 32},
                                         Group{16, 32}, Group{2, 32, 2}, Group{3, 32, 3}, Group{4, 32, 2},
                                         Group{5, 32, 5}, Group{6, 32, 6}, Group{11, 32, 11}, Group{16, 32, 16},
                                         Group{5, 32, 1}, Group{6, 32, 2}, Group{6, 32, 3}, Group{9, 32, 3},
                                         Group{7, 32, 4}, Group{2, 1}, Group{3, 1}, Group{5, 1}, Group{8, 2}),
                         name_of);

TEST(GatheredExchange, SumsAreInRankOrder) {
  for (const int ranks : {1, 2, 3, 4, 5, 7, 8, 12, 13})
    for (const int ranks_per_node : {0, ranks, 4, 3, 2})
      run_group({ranks, 32, ranks_per_node}, exchange_cases::sums_are_in_rank_order);
}
TEST(GatheredExchange, MismatchesAreNamed) {
  for (const int ranks : {2, 3, 4, 5, 9})
    for (const int ranks_per_node : {0, ranks, 3})
      run_group({ranks, 32, ranks_per_node}, exchange_cases::mismatches_are_named);
}

TEST(TreeExchange, EveryRankGetsTheSameBits) {
  Patience patience;
  patience.gather_limit = 1;
  std::mutex mutex;
  std::set<std::vector<double>> sums;
  harness::run(
      6,
      [&](const World& world, Queue& queue) {
        const double mine = 1.0 / (3 + world->rank());
        auto sum = world->exchange({Header("tree", Direction::forward, 0), {mine, mine * 1e-9}, 0, {}}, queue).payload;
        const std::lock_guard lock(mutex);
        sums.insert(std::move(sum));
      },
      patience);
  EXPECT_EQ(sums.size(), 1u);
}

TEST(TreeExchange, MismatchesReachEveryRank) {
  Patience patience;
  patience.gather_limit = 1;
  std::atomic<int> told{0};
  harness::run(
      7,
      [&](const World& world, Queue& queue) {
        Message message{Header("bn", Direction::forward, 0), {1.0}, 0, {}};
        write_layer(parse_layer(world->rank() == 5 ? "batch_norm:eps=1e-3" : "batch_norm"), message.header);
        if (world->rank() == 5) {
          message.payload.push_back(2.0);
        }
        const std::string error = error_of([&] { world->exchange(std::move(message), queue); });
        if (error.starts_with("mismatch: rank 5: bn, call 0, forward: ") && error.find("eps is 0.001") != error.npos)
          ++told;
      },
      patience);
  EXPECT_EQ(told, 7);
}

// A record that says so is a rank's decline.
TEST(DeclinedRecord, IsToldWithItsReasonAndTheGroupGoesOn) {
  for (const Group& group :
       {Group{3, 32}, Group{3, 32, 3}, Group{3, 1}, Group{5, 32, 5}, Group{7, 32, 7}, Group{8, 32, 4}})
    run_group(group, [](const World& world, Queue& queue) {
      struct {
        RecordHead head;
        double payload;
      } record{{Header("bn", Direction::forward, 0), 0, 1}, 1.0};
      const auto gather = [&] {
        return world->gather({reinterpret_cast<std::byte*>(&record), 1, nullptr, 0}, queue).sums[0];
      };
      const std::string why = "x is wrong: " + std::string(300, 'x'), cut = why.substr(0, 191);
      const RecordHead good = record.head;
      if (world->rank() == 1) record.head = RecordHead(good.header, why);
      EXPECT_EQ(error_of([&] { gather(); }), world->rank() == 1 ? "aborted: " + cut : "aborted: rank 1 failed: " + cut);
      record.head = good;
      EXPECT_EQ(gather(), world->size());
    });
}

TEST(Split, RefusesAColorThatADoubleCannotHold) {
  harness::run(2, [](const World& world, Queue& queue) {
    EXPECT_EQ(error_of([&] { world->split((std::int64_t{1} << 53) + 1, queue); }),
              "invalid argument: the color of a split is 9007199254740993, must be from -2^53 to 2^53");
  });
}

TEST(FailedRank, ReleasesItsPeers) {
  const auto error = error_of([] {
    harness::run(3, [](const World& world, Queue& queue) {
      if (world->rank() == 1) fail(Code::invalid_input, "file x is broken");
      world->exchange({Header("bn", Direction::forward, 0), {1.0}, 0, {}}, queue);
    });
  });
  EXPECT_EQ(error, "invalid input: file x is broken");
}

TEST(FailedRank, ItsPeersSayWhichAndWhy) {
  std::mutex mutex;
  std::set<std::string> told;
  const auto worlds = threads(2);
  worlds[1]->abort(Error(Code::invalid_input, "file x is broken"));
  Queue queue = Queue::cpu();
  EXPECT_EQ(error_of([&] {
              worlds[0]->exchange({Header("bn", Direction::forward, 0), {1.0}, 0, {}}, queue);
            }),
            "aborted: rank 1 failed: file x is broken");
}

// Rank 0 of 2, whose peer sends `bytes`, or puts them into memory that both share.
class OnePeer final : public Links {
 public:
  OnePeer(Bytes bytes, bool shares) : bytes_(std::make_shared<const Bytes>(std::move(bytes))), shares_(shares) {}
  bool shares_memory(std::span<const int>) const override { return shares_; }
  std::span<const std::byte> find(int from, std::uint64_t) override {
    return from == 1 ? std::span<const std::byte>(*bytes_) : std::span<const std::byte>();
  }
  int rank() const noexcept override { return 0; }
  int size() const noexcept override { return 2; }
  std::string_view transport() const noexcept override { return "a test"; }
  void post(std::span<const int>, std::uint64_t, std::shared_ptr<const Bytes>) override {}
  std::shared_ptr<const Bytes> poll(int, std::uint64_t) override { return bytes_; }
  std::vector<int> unsent(std::uint64_t) override { return {}; }
  void abort(const Error&) noexcept override {}

 private:
  std::shared_ptr<const Bytes> bytes_;
  bool shares_;
};

TEST(ForeignMessages, AreTold) {
  Queue queue = Queue::cpu();
  Header older("x", Direction::agreement, 0);
  older.set(Field::wire_version, std::uint64_t{1});
  for (const bool shares : {false, true}) {
    const auto told = [&](const Header& header, std::size_t size) {
      Bytes bytes(size);
      if (size > 0) std::memcpy(bytes.data(), &header, std::min(size, sizeof header));
      const auto world = communicate(std::make_shared<OnePeer>(std::move(bytes), shares), Patience{});
      return error_of([&] { world->exchange({Header("x", Direction::agreement, 0), {}, 0, {}}, queue); });
    };
    for (const std::size_t size : {100, 392, 1000})  // of that version they may be shorter than ours, and longer
      EXPECT_EQ(told(older, size),
                "mismatch: rank 1: another version of allnorm, whose messages are of wire version 1, must be of 5");
    EXPECT_EQ(told(Header("x", Direction::agreement, 0), 100),
              "transport: a message from rank 1 has 100 bytes and is not one of allnorm's");
    EXPECT_EQ(told(Header(), 0), "transport: a message from rank 1 has 0 bytes and is not one of allnorm's");
  }
}

// A message of the right kind, and something behind it.
TEST(ForeignMessages, HaveNothingBehindThem) {
  struct Padded final : public Links {
    int rank() const noexcept override { return 0; }
    int size() const noexcept override { return 2; }
    std::string_view transport() const noexcept override { return "a test"; }
    void post(std::span<const int>, std::uint64_t, std::shared_ptr<const Bytes>) override {}
    std::shared_ptr<const Bytes> poll(int, std::uint64_t) override { return nullptr; }
    std::vector<int> unsent(std::uint64_t) override { return {}; }
    void abort(const Error&) noexcept override {}
    bool shares_memory(std::span<const int>) const override { return true; }
    bool put(std::span<const int>, std::uint64_t, Parts parts) override {
      for (const auto& part : parts) own.insert(own.end(), part.begin(), part.end());
      longer = own;
      longer.resize(own.size() + 8, std::byte{1});
      return true;
    }
    std::span<const std::byte> find(int from, std::uint64_t) override {
      return from == 0 ? std::span<const std::byte>(own) : std::span<const std::byte>(longer);
    }
    Bytes own, longer;
  };
  Queue queue = Queue::cpu();
  const auto world = communicate(std::make_shared<Padded>(), Patience{});
  EXPECT_EQ(error_of([&] {
              world->exchange({Header("x", Direction::agreement, 0), {}, 0, {}}, queue);
            }),
            "transport: a message from rank 1 has 464 bytes and is not one of allnorm's");
}

TEST(Threads, NeedAtLeastOneRank) {
  EXPECT_EQ(error_of([] { threads(0); }), "invalid argument: ranks is 0, must be at least 1");
}

}  // namespace
}  // namespace exchange_test
