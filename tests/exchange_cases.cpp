#include "exchange_cases.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "allnorm/catalogue.hpp"
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

void moments_are_merged(const World& world, Queue& queue) {
  const int K = world->size();
  const auto own = static_cast<std::size_t>(world->rank());
  constexpr std::size_t G = 6, rest = 3, values = 5;
  std::uint64_t call = 0;
  for (const std::size_t width : {1u, 2u, 3u})
    for (const int empty : {-1, 0, K - 1}) {
      // rank r's value i of group g: a distance of 2^20 that all share, and whole numbers, so that sums of them are
      // exact
      const auto count_of = [&](int rank) {
        return rank == empty ? std::size_t{0} : values + static_cast<std::size_t>(rank);
      };
      const auto value = [](int rank, std::size_t i, std::size_t g) {
        return 0x1p20 + static_cast<double>((static_cast<std::size_t>(rank) * 7 + i * (g + 3) * 5) % 11);
      };
      const auto moments_of = [&](int from, int to) {
        std::vector<long double> m(1 + G + G * width, 0.0L);
        for (int rank = from; rank < to; ++rank) m[0] += static_cast<long double>(count_of(rank));
        const auto over = [&](auto&& term) {
          long double sum = 0;
          for (int rank = from; rank < to; ++rank)
            for (std::size_t i = 0; i < count_of(rank); ++i) sum += term(rank, i);
          return sum;
        };
        if (m[0] == 0) return m;
        for (std::size_t g = 0; g < G; ++g)
          m[1 + g] = over([&](int rank, std::size_t i) { return static_cast<long double>(value(rank, i, g)); }) / m[0];
        for (std::size_t g = 0; g < G; ++g)
          for (std::size_t w = 0; w < width; ++w) {
            const std::size_t h = g / width * width + w;
            m[1 + G + g * width + w] = over([&](int rank, std::size_t i) {
              return (value(rank, i, g) - m[1 + g]) * (value(rank, i, h) - m[1 + h]);
            });
          }
        return m;
      };
      const auto mine = moments_of(world->rank(), world->rank() + 1), all = moments_of(0, K);
      Message m = message("moments", call++, {mine.begin(), mine.end()});
      for (std::size_t i = 0; i < rest; ++i) m.payload.push_back(static_cast<double>((own + 1) * (i + 1)));
      m.header.set(Field::moments, std::uint64_t{G});
      m.header.set(Field::co_moments, std::uint64_t{width});
      const auto merged = world->exchange(m, queue).payload;
      ASSERT_EQ(merged.size(), m.payload.size());
      EXPECT_EQ(merged[0], static_cast<double>(all[0]));
      // A mean is rounded once a merge; the distance of two of them, at most 11, so too, and that in each product.
      const double unit = 0x1p-53 * 0x1p21, n = static_cast<double>(all[0]);
      for (std::size_t i = 1; i < all.size(); ++i)
        EXPECT_NEAR(merged[i], static_cast<double>(all[i]), (K + 1) * unit * (i <= G ? 1 : 4 * 11 * n)) << i;
      for (std::size_t i = 0; i < rest; ++i)
        EXPECT_EQ(merged[all.size() + i], static_cast<double>(i + 1) * K * (K + 1) / 2);

      m.header.set(Field::call, call++);
      if (world->rank() == K / 2) m.payload[1 + G - 1] = std::nan("");
      const auto spoiled = world->exchange(m, queue).payload;
      const bool counts = K / 2 != empty;
      for (std::size_t i = 0; i < merged.size(); ++i) {
        const std::size_t row = i > G && i < all.size() ? (i - 1 - G) / width : i - 1;
        const bool there = i >= 1 && i < all.size() && row / width == (G - 1) / width &&
                           (row == G - 1 || (i > G && (i - 1 - G) % width == width - 1));
        const bool is_first = i > G && counts && (K == 1 || (K == 2 && empty == 0));  // taken as it is
        if (there && counts && !is_first)
          EXPECT_TRUE(std::isnan(spoiled[i])) << i;
        else
          EXPECT_EQ(spoiled[i], merged[i]) << i;
      }
    }
  Message wrong = message("moments", 0, std::vector<double>(1 + 2 * G - 1));
  wrong.header.set(Field::moments, std::uint64_t{G});
  wrong.header.set(Field::co_moments, std::uint64_t{1});
  EXPECT_EQ(harness::error_of([&] { world->exchange(wrong, queue); }),
            "invalid argument: a message of 12 doubles has moments = 6 and co_moments = 1, must have at least "
            "1 + moments (1 + co_moments) doubles, and moments a multiple of co_moments");
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
  write_layer(Layer("batch_norm"), eps.header);
  write_layer(Layer("batch_norm").set("eps", "1e-3").set("window", "4"), other.header);
  EXPECT_EQ(told(eps, other), who +
                                  ": bn, call 3, forward: eps is 0.001, must be 1e-05 as on rank 0; "
                                  "window is 4, must be 1 as on rank 0");
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
