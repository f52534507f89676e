// Numbers of values over all ranks: exact to 2^53, and an error beyond. A communicator claims what no test could hold.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "allnorm/norm.hpp"
#include "harness.hpp"
#include "kernels/steps.hpp"
#include "launch/reference/reference.hpp"

namespace counts_test {
namespace {

using namespace allnorm;
using harness::error_of;

constexpr double most = 0x1p53;

/// Rank 0 of two, whose peer has as many values as make the claim, with the same moments: about 0 and in sums that are
/// added, or in a record of its own.
class Claims final : public Communicator {
 public:
  Claims(double own, double other, bool in_records) : own_(own), other_(other), in_records_(in_records) {}
  int rank() const noexcept override { return 0; }
  int size() const noexcept override { return 2; }
  std::string name_of(int rank) const override { return "rank " + std::to_string(rank); }
  std::string_view transport() const noexcept override { return "a test"; }
  Pending start_exchange(Message, Queue&) override { return {}; }
  std::shared_ptr<Communicator> split(std::int64_t, Queue&) override { return nullptr; }
  void decline(const Error&) noexcept override {}
  void abort(const Error&) noexcept override {}
  Traffic traffic() const noexcept override { return {}; }

  Gathered gather(const Record& record, Queue&) override {
    double* const payload = steps::payload_of(record.data);
    const std::size_t bytes = sizeof(RecordHead) + record.count * sizeof(double);
    payload[0] = in_records_ ? own_ : own_ + other_;
    m2.assign(payload + 1 + record.moments, payload + 1 + 2 * record.moments);
    if (!in_records_) return {nullptr, 0, 0, payload};
    for (double& value : m2) value += value;
    records_.assign(record.data, record.data + bytes);
    records_.insert(records_.end(), record.data, record.data + bytes);
    steps::payload_of(records_.data() + bytes)[0] = other_;
    return {records_.data(), bytes, 2, nullptr};
  }

  std::vector<double> m2;  // of both, of the last exchange

 private:
  double own_, other_;
  bool in_records_;
  std::vector<std::byte> records_;
};

std::string forward(Norm& norm, Queue& queue, Saved* saved = nullptr) {
  reference::Doubles x{1, 2, 3, 5, 8, 13}, y(6);
  ForwardInputs in;
  in.input = view(x.data(), Shape{3, 2});
  return error_of([&] {
    Saved made = norm.forward(in, view(y.data(), Shape{3, 2}), queue);
    if (saved != nullptr) *saved = std::move(made);
  });
}

std::string too_many(int call) {
  return "invalid input: sync_batch_norm, call " + std::to_string(call) +
         ", forward: a group has more than 2^53 values on all ranks together, must have at most that";
}

TEST(Counts, AreExactToTwoToThe53) {
  Queue queue = Queue::cpu();
  for (const bool in_records : {false, true})
    for (const double claim : {0x1p31 + 5, most - 1, most}) {
      const auto group = std::make_shared<Claims>(3, claim - 3, in_records);
      Norm norm(Layer("sync_batch_norm"), 2, group, queue);
      Saved saved;
      ASSERT_EQ(forward(norm, queue, &saved), "") << claim;
      const RunningStatistics running = norm.running(queue);
      for (std::size_t c = 0; c < 2; ++c) {
        const double var = group->m2[c] / claim;
        EXPECT_EQ(saved.frame().var[c], var) << claim;
        EXPECT_EQ(running.spread[c], (1 - 0.1) * 1 + 0.1 * (var * (claim / (claim - 1)))) << claim;
      }
      EXPECT_EQ(running.tracked, 1);
    }
}

// 2^53 + 1 is no double: it has to be seen as the counts are added.
TEST(Counts, BeyondAreAnError) {
  Queue queue = Queue::cpu();
  for (const auto& [own, other, in_records] :
       {std::tuple{most, 1.0, true}, {3.0, most - 2, true}, {most, 2.0, false}, {most, most, true}}) {
    Norm norm(Layer("sync_batch_norm"), 2, std::make_shared<Claims>(own, other, in_records), queue);
    EXPECT_EQ(forward(norm, queue), too_many(0)) << own << " and " << other;
    EXPECT_EQ(norm.running(queue).tracked, 0);
    EXPECT_EQ(norm.running(queue).spread, (std::vector<double>{1, 1}));
  }
}

// A batch of mini-batches is counted too.
TEST(Counts, OfABatchHaveTheSameEnd) {
  Queue queue = Queue::cpu();
  Norm norm(parse_layer("sync_batch_norm:minibatches=3"), 2, std::make_shared<Claims>(3, most / 2 - 3, false), queue);
  EXPECT_EQ(forward(norm, queue), "");
  EXPECT_EQ(forward(norm, queue), "");  // 2^53 so far
  const State before = norm.save(queue);
  EXPECT_EQ(forward(norm, queue), too_many(2));
  const State after = norm.save(queue);
  for (std::size_t i = 0; i < before.entries.size(); ++i) EXPECT_EQ(after.entries[i].data, before.entries[i].data);
}

TEST(Counts, AreMergedExactlyBetweenRanks) {
  for (const double own : {most - 1, most})
    harness::run(2, [&](const harness::World& world, Queue& queue) {
      struct {
        RecordHead head;
        double payload[3];
      } record{{Header("bn", Direction::forward, 0), 0, 3}, {world->rank() == 0 ? own : 1, 0.5, 2}};
      record.head.header.set(Field::moments, std::uint64_t{1});
      record.head.header.set(Field::co_moments, std::uint64_t{1});
      const std::string error = error_of([&] {
        const Gathered all = world->gather({reinterpret_cast<std::byte*>(&record), 3, nullptr, 1}, queue);
        EXPECT_EQ(all.sums[0], most);
        EXPECT_EQ(all.sums[1], 0.5);
        EXPECT_EQ(all.sums[2], 4);
      });
      EXPECT_EQ(error, own < most
                           ? ""
                           : "invalid input: bn, call 0, forward: a group has more than 2^53 values on all ranks "
                             "together, must have at most that");
    });
}

}  // namespace
}  // namespace counts_test
