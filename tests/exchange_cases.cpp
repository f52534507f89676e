#include "exchange_cases.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "allnorm/message.hpp"

namespace exchange_cases {

using namespace allnorm;
using harness::World;

namespace {

Message message(std::string_view name, std::uint64_t call, std::vector<double> payload, std::uint64_t flags = 0) {
  return {Header(name, Direction::forward, call), std::move(payload), flags, {}};
}

// A value of rank r at place i whose sum over ranks depends on the order of adding.
double awkward(int rank, std::size_t i) {
  return std::ldexp(1.0 + 0.37 * rank + 0.011 * static_cast<double>(i),
                    (rank * 29 + static_cast<int>(i) * 7) % 60 - 30);
}

}  // namespace

void sums_are_exact(const World& world, Queue& queue) {
  const int K = world->size(), r = world->rank();
  std::uint64_t call = 0;
  for (const std::size_t size : {0u, 1u, 7u, 5000u}) {
    std::vector<double> payload(size);
    for (std::size_t i = 0; i < size; ++i) payload[i] = static_cast<double>(i + 1) * (r + 1);
    const auto sum =
        world->exchange(message("sums", call++, payload, r == K - 1 ? std::uint64_t{flag_nonfinite} : 0), queue);
    ASSERT_EQ(sum.payload.size(), size);
    for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(sum.payload[i], static_cast<double>(i + 1) * K * (K + 1) / 2);
    EXPECT_EQ(sum.flags, flag_nonfinite);
    if (!sum.rank_flags.empty()) {
      ASSERT_EQ(sum.rank_flags.size(), static_cast<std::size_t>(K));
      for (int k = 0; k < K; ++k)
        EXPECT_EQ(sum.rank_flags[static_cast<std::size_t>(k)], k == K - 1 ? std::uint64_t{flag_nonfinite} : 0);
    }
  }
  EXPECT_EQ(world->traffic().exchanges, 4u);
  EXPECT_EQ(world->traffic().bytes, 8u * 5008u);
}

void sums_are_in_rank_order(const World& world, Queue& queue) {
  std::vector<double> payload(100), expected(100);
  for (std::size_t i = 0; i < payload.size(); ++i) {
    payload[i] = awkward(world->rank(), i);
    expected[i] = awkward(0, i);
    for (int rank = 1; rank < world->size(); ++rank) expected[i] += awkward(rank, i);
  }
  EXPECT_EQ(world->exchange(message("order", 0, payload), queue).payload, expected);
}

void exchanges_overlap(const World& world, Queue& queue) {
  const double K = world->size();
  const auto half = world->split(world->rank() % 2, queue);
  std::vector<Pending> pending;
  for (std::uint64_t i = 0; i < 5; ++i) {  // every other one too large to leave before it is asked for
    const std::size_t size = i % 2 == 0 ? 200000 : 1;
    pending.push_back(
        world->start_exchange(message("overlap", i, std::vector<double>(size, static_cast<double>(i) + 1)), queue));
  }
  EXPECT_EQ(half->exchange(message("half", 0, {1.0}), queue).payload[0], half->size());  // another group in between
  pending[4].poll();
  for (const std::size_t i : {3u, 0u, 4u, 2u, 1u}) {
    const auto sum = pending[i].wait().payload;
    EXPECT_EQ(sum.front(), K * (static_cast<double>(i) + 1));
    EXPECT_EQ(sum.back(), sum.front());
  }
  EXPECT_EQ(harness::error_of([&] { pending[0].wait(); }),
            "invalid argument: a Pending is empty, must be of an exchange that was not waited for yet");
}

void splits_are_independent(const World& world, Queue& queue) {
  const int K = world->size(), r = world->rank();
  const auto half = world->split(r % 2, queue);
  EXPECT_EQ(half->size(), (K + 1 - r % 2) / 2);
  EXPECT_EQ(half->rank(), r / 2);
  const auto pair = half->split(half->rank() / 2, queue);
  for (std::uint64_t call = 0; call < 3; ++call) {
    double evens = 0, pairs = 0, all = 0;
    for (int k = 0; k < K; ++k) {
      all += k;
      if (k % 2 != r % 2) continue;
      evens += k;
      if (k / 2 / 2 == r / 2 / 2) pairs += k;
    }
    const double mine = r;
    EXPECT_EQ(half->exchange(message("half", call, {mine}), queue).payload[0], evens);
    EXPECT_EQ(pair->exchange(message("pair", call, {mine}), queue).payload[0], pairs);
    EXPECT_EQ(world->exchange(message("all", call, {mine}), queue).payload[0], all);
  }
  const auto blocks = sync_group(world, Sync{2}, queue);
  EXPECT_EQ(blocks->size(), r / 2 * 2 + 1 < K ? 2 : 1);
  EXPECT_EQ(sync_group(world, Sync{Sync::none}, queue)->size(), 1);
  EXPECT_EQ(sync_group(world, Sync{Sync::world}, queue), world);
}

void a_rank_may_decline(const World& world, Queue& queue) {
  const int K = world->size(), r = world->rank();
  if (K == 1) return;
  std::uint64_t call = 0;
  for (const std::size_t size : {1, 200000})  // a long message leaves MPI only when it is asked for
    for (int odd = 0; odd < K; ++odd, ++call) {
      const std::vector<double> ones(size, 1.0);
      if (r == odd) {
        world->decline(Error(Code::invalid_input, "weight is wrong"));
      } else {
        EXPECT_EQ(harness::error_of([&] { world->exchange(message("bn", call, ones), queue); }),
                  "aborted: rank " + std::to_string(odd) + " failed: weight is wrong");
      }
      EXPECT_EQ(world->exchange(message("bn", call, ones), queue).payload[0], K);  // the group goes on
    }
}

void mismatches_are_named(const World& world, Queue& queue) {
  const int K = world->size(), r = world->rank();
  if (K == 1) return;
  const int odd = K - 1;
  const auto told = [&](Message ours, Message theirs) {
    return harness::error_of([&] { world->exchange(r == odd ? std::move(theirs) : std::move(ours), queue); });
  };
  const std::string who = "mismatch: rank " + std::to_string(odd);

  Message eps = message("bn", 3, {1.0}), other = message("bn", 3, {1.0});
  eps.header.set(Field::eps, 1e-5);
  other.header.set(Field::eps, 1e-3);
  other.header.set(Field::window, std::uint64_t{4});
  EXPECT_EQ(told(eps, other), who +
                                  ": bn, call 3, forward: eps is 0.001, must be 1e-05 as on rank 0; "
                                  "window is 4, must be 0 as on rank 0");
  EXPECT_EQ(told(message("bn", 4, {1.0}), message("bn", 4, {1.0, 2.0})),
            who + ": bn, call 4, forward: payload length is 2, must be 1 as on rank 0");
  EXPECT_EQ(told(message("layer1", 5, {1.0}), message("layer2", 5, {1.0})),
            who + " is at layer2, call 5, forward, must be at layer1, call 5, forward as on rank 0");
  EXPECT_EQ(told(message("bn", 6, {1.0}), message("bn", 7, {1.0})),
            who + " is at bn, call 7, forward, must be at bn, call 6, forward as on rank 0");
  Message back = message("bn", 8, {1.0});
  back.header.set(Field::direction, static_cast<std::uint64_t>(Direction::backward));
  EXPECT_EQ(told(message("bn", 8, {1.0}), back),
            who + " is at bn, call 8, backward, must be at bn, call 8, forward as on rank 0");
  Message hash = message("bn", 9, {});
  hash.header.set(Field::weight_hash, std::uint64_t{7});
  EXPECT_EQ(told(message("bn", 9, {}), hash),
            who + ": bn, call 9, forward: conv_weight differs, must be the same as on rank 0");
  EXPECT_EQ(world->exchange(message("bn", 10, {1.0}), queue).payload[0], K);  // the group is still usable
}

}  // namespace exchange_cases
