#include "far_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>

#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "cases.hpp"

namespace far_cases {

using namespace allnorm;
using cases::Random;
using harness::World;

namespace {

constexpr std::int64_t C = 4;  // the last channel is constant

template <class T>
constexpr double roundoff = std::is_same_v<T, double>  ? 0x1p-53
                            : std::is_same_v<T, float> ? 0x1p-24
                            : std::is_same_v<T, f16>   ? 0x1p-11
                                                       : 0x1p-8;

template <class T>
using Values = backend::Array<T>;

/// (N, C, S), |mean| = ratio * std per channel.
template <class T>
Values<T> batch(Random& random, std::int64_t N, std::int64_t S, double ratio) {
  Values<T> x;
  const double std[C] = {1, 2, 0.5, 0};
  const double constant = std::is_same_v<T, f16> ? 5e4 : 1e10;
  for (std::int64_t i = 0; i < N * C * S; ++i) {
    const auto c = i / S % C;
    const double v = c == C - 1 ? constant : std[c] * (random.normal() + (c == 1 ? -ratio : ratio));
    x.push_back(store<T>(static_cast<compute_t<T>>(v)));
  }
  return x;
}

template <class T>
struct Call {
  std::vector<double> mean, var;
  Values<T> y, dx;
};
template <class T>
Call<T> call(Norm& norm, const Values<T>& x, const Values<T>& dy, std::int64_t S, Queue& queue) {
  const Shape shape{static_cast<std::int64_t>(x.size()) / (C * S), C, S};
  Call<T> made{{}, {}, Values<T>(x.size()), Values<T>(x.size())};
  ForwardInputs in;
  in.input = backend::view(x.data(), shape);
  const Saved saved = norm.forward(in, backend::view(made.y.data(), shape), queue);
  BackwardOutputs out;
  out.input = backend::view(made.dx.data(), shape);
  norm.backward(saved, backend::view(dy.data(), shape), out, queue);
  made.mean = to_host(saved.frame().mean, queue);
  made.var = to_host(saved.frame().var, queue);
  queue.wait();
  return made;
}

/// The ranks' values must have the same bits: they are agreed on like a state.
void expect_same_on_all(const World& world, const std::vector<double>& values, std::uint64_t call, Queue& queue) {
  Message message{Header("bits", Direction::agreement, call), {}, 0, {}};
  message.header.set(Field::running_hash, hash_of(values.data(), values.size() * sizeof(double)));
  EXPECT_EQ(harness::error_of([&] { world->exchange(message, queue); }), "");
}

template <class T>
class Ranks {
 public:
  Ranks(const World& world, Queue& queue)
      : world_(world), queue_(queue), together_(layer(), C, world, queue), alone_(layer(), C, self(), queue) {}

  /// One call with counts[r] samples of S values per channel on rank r.
  void step(Random& random, const std::vector<std::int64_t>& counts, std::int64_t S, double ratio) {
    std::int64_t N = 0, from = 0;
    for (std::size_t r = 0; r < counts.size(); ++r) {
      if (static_cast<int>(r) == world_->rank()) from = N;
      N += counts[r];
    }
    const Values<T> x = batch<T>(random, N, S, ratio);
    Values<T> dy = batch<T>(random, N, S, 0);
    for (T& v : dy) v = store<T>(std::min(load(v), static_cast<compute_t<T>>(random.normal())));
    const auto first = from * C * S, last = first + counts[static_cast<std::size_t>(world_->rank())] * C * S;
    const auto part = [&](const Values<T>& all) { return Values<T>(all.begin() + first, all.begin() + last); };
    const Call<T> all = call(alone_, x, dy, S, queue_), own = call(together_, part(x), part(dy), S, queue_);
    compare(own, all, static_cast<std::size_t>(first), static_cast<std::size_t>(S), static_cast<double>(N * S));
    trace_.insert(trace_.end(), own.mean.begin(), own.mean.end());
    trace_.insert(trace_.end(), own.var.begin(), own.var.end());
    for (const T v : own.y) trace_.push_back(static_cast<double>(load(v)));
    expect_same_on_all(world_, own.mean, ++calls_, queue_);
    expect_same_on_all(world_, own.var, ++calls_, queue_);

    // a NaN in channel 1 on the last rank with values: the other channels keep their bits
    Norm twin(layer(), C, world_, queue_);
    Values<T> mine = part(x);
    const bool spoils = last == static_cast<std::int64_t>(x.size()) && last > first;
    if (spoils) mine[static_cast<std::size_t>(last - first - (C - 1) * S)] = store<T>(static_cast<compute_t<T>>(NAN));
    const Call<T> spoiled = call(twin, mine, part(dy), S, queue_);
    for (std::size_t c = 0; c < C; ++c) {
      if (c == 1) {
        EXPECT_TRUE(std::isnan(spoiled.mean[c]) && std::isnan(spoiled.var[c]));
        continue;
      }
      EXPECT_EQ(spoiled.mean[c], own.mean[c]);
      EXPECT_EQ(spoiled.var[c], own.var[c]);
      const auto space = static_cast<std::size_t>(S);
      for (std::size_t i = c * space; i < own.y.size(); i += C * space) EXPECT_EQ(load(spoiled.y[i]), load(own.y[i]));
    }
  }
  Trace&& trace() { return std::move(trace_); }

 private:
  static Layer layer() { return Layer("sync_batch_norm"); }

  // What one mean in a double allows: its rounding is 2^-53 |mean|, so all bounds have 1 + |mean| / std. Beside that,
  // the sums of differences, on the ranks and on the lone one: roundings of terms of some std, which add up like noise.
  void compare(const Call<T>& own, const Call<T>& all, std::size_t first, std::size_t S, double count) const {
    const double K = world_->size(), statistics = backend::statistics_unit(dtype_of<T>());
    for (std::size_t c = 0; c < C; ++c) {
      const double std = std::sqrt(all.var[c]), mean = std::abs(all.mean[c]), ratio = std > 0 ? mean / std : 0;
      const double far = 0x1p-53 * (1 + ratio);
      SCOPED_TRACE("channel " + std::to_string(c) + ", |mean|/std " + std::to_string(ratio) + ", rank " +
                   std::to_string(world_->rank()) + " of " + std::to_string(world_->size()));
      const double sums = 2 * 0x1p-53 * std::sqrt(count) + statistics;
      EXPECT_LE(std::abs(own.mean[c] - all.mean[c]), 4 * 0x1p-52 * mean + sums * std);
      EXPECT_LE(std::abs(own.var[c] - all.var[c]), ((4 + K) * far + 2 * sums) * all.var[c]);
      if (c == C - 1) {
        EXPECT_EQ(own.var[c], 0);
        EXPECT_EQ(own.mean[c], all.mean[c]);
      }
      // On the way to y and dx values are rounded to the type. dx's terms are dy / sigma, up to 5 / sigma here, and as
      // much times both y and the mean of dy * y, which are up to sqrt(count) and 5.
      const double map = 8 * far + (std::is_same_v<T, double> ? 0 : 8 * 0x1p-24 + 2 * roundoff<T>)+statistics;
      const double term = 5 / std::sqrt(all.var[c] + 1e-5) * (1 + std::sqrt(count));
      for (std::size_t i = c * S; i < own.y.size(); i += C * S)
        for (std::size_t s = i; s < i + S; ++s) {
          const auto y = static_cast<double>(load(all.y[first + s])), dx = static_cast<double>(load(all.dx[first + s]));
          EXPECT_LE(std::abs(static_cast<double>(load(own.y[s])) - y), map * std::max(1.0, std::abs(y)));
          EXPECT_LE(std::abs(static_cast<double>(load(own.dx[s])) - dx), map * term);
        }
    }
  }

  World world_;
  Queue& queue_;
  Norm together_, alone_;
  Trace trace_;
  std::uint64_t calls_ = 0;
};

template <class T>
Trace check_as(const World& world, Queue& queue) {
  const auto K = static_cast<std::size_t>(world->size());
  Random random(17);  // the same on every rank
  std::vector<std::int64_t> uneven(K), one(K, 1);
  for (std::size_t r = 0; r < K; ++r) uneven[r] = static_cast<std::int64_t>(r % 4);  // on rank 0 none
  if (K == 1) uneven[0] = 5;
  const double most = std::is_same_v<T, double> ? 1e8 : std::is_same_v<T, float> ? 1e6 : 0.02 / roundoff<T>;
  Trace trace;
  for (const double ratio : {0.0, 30.0, std::sqrt(most), most}) {
    Ranks<T> ranks(world, queue);
    ranks.step(random, uneven, 6, ratio);  // a first call
    ranks.step(random, one, 1, ratio);
    ranks.step(random, uneven, 6, ratio == 0 ? most : 0);  // and a jump
    const Trace own = ranks.trace();
    trace.insert(trace.end(), own.begin(), own.end());
  }
  return trace;
}

}  // namespace

Trace check(DType dtype, const World& world, Queue& queue) {
  return visit(dtype, [&]<class T>(std::type_identity<T>) { return check_as<T>(world, queue); });
}

}  // namespace far_cases
