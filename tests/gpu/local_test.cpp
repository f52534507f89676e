// The first halves of calls on a GPU, forward and backward, against plain loops and the steps on the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../kernels_support.hpp"
#include "kernels/steps.hpp"

namespace allnorm::kernel_test {
namespace {

template <class T>
struct FirstHalves : OverTypes<T> {};
TYPED_TEST_SUITE(FirstHalves, Types);

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

/// A layer's state in memory that both sides read, every number of it different.
struct StateArrays {
  backend::Array<Counters> counters{2};
  backend::Array<double> values, ring_count, ring_mean, ring_var;
  backend::Array<std::uint32_t> turn{1};  // the second copy is current
  LayerState state{};

  StateArrays(std::int64_t channels, bool history, std::int64_t window) {
    turn[0] = 1;
    state.channels = channels;
    state.fields = history ? LayerState::fields_with_history : LayerState::fields_without_history;
    values.resize(index(2 * state.fields * channels));
    for (auto* array : {&values, &ring_count, &ring_mean, &ring_var}) {
      if (array != &values) array->resize(index(window * std::max<std::int64_t>(1, channels)));
      for (std::size_t i = 0; i < array->size(); ++i) (*array)[i] = std::sin(static_cast<double>(i + array->size()));
    }
    counters[1].calls = 41;
    counters[1].counted = 40;
    counters[1].done = history ? 1 : 0;
    counters[1].candidate = history ? 1 : 0;
    counters[1].weight = 1;
    counters[1].count = 7;
    counters[1].batches = 20;
    counters[1].entries = history ? 2 : 0;
    counters[1].newest = history ? 1 : 0;
    state.counters = counters.data();
    state.values = values.data();
    state.parity = turn.data();
    state.ring.count = ring_count.data();
    state.ring.mean = ring_mean.data();
    state.ring.var = ring_var.data();
    state.ring.slots = window;
  }
};

backend::Array<std::byte> bytes_for_record(std::int64_t doubles) {
  return backend::Array<std::byte>(sizeof(RecordHead) + index(doubles) * sizeof(double), std::byte{0xa5});
}

/// What a rank sends: its moments, and a head that says what the state holds.
TYPED_TEST(FirstHalves, ForwardMakesTheRanksRecord) {
  using T = TypeParam;
  for (const Partition& p : partitions)
    for (const bool history : {false, true}) {
      SCOPED_TRACE(text(p) + (history ? " with history" : ""));
      const std::int64_t G = p.groups(), lanes = history ? 3 : 0;
      const steps::Layout layout{G};
      const StateArrays arrays(G, history, 4);
      const auto x = normal<T>(p.elements(), 1, 3.0, 2.0);
      Walled<double> mean(G), m2(G);
      this->ops.moments({x.data(), dtype_of<T>(), p, mean.data(), m2.data()}, this->queue);

      auto record = bytes_for_record(layout.size(lanes));
      backend::Array<std::uint64_t> weights{0x1234567890abcdefu, 1};
      ForwardArgs args{};
      args.x = x.data();
      args.dtype = dtype_of<T>();
      args.norm = args.fine = p;
      args.rules.persists = true;
      args.rules.r_max = 3;
      args.rules.d_max = 5;
      args.rules.minibatches = args.rules.window = 4;
      args.state = arrays.state;
      args.record = record.data();
      args.header = Header("layer", Direction::forward, 0);
      args.entries = lanes;
      if (history) args.weights = weights.data();
      this->queue.ops().forward_local(args, this->queue);
      this->queue.wait();

      steps::Hashes hashes = steps::hashes_of(arrays.state);
      for (std::int64_t c = 0; c < G; ++c) hashes.add(steps::hashes_of(arrays.state, c));
      Header header = args.header;
      steps::write_header(args.rules, arrays.state, hashes, header);
      if (history) header.set(Field::weight_hash, weights[0]);
      RecordHead head{};
      std::memcpy(&head, record.data(), sizeof(head));
      EXPECT_EQ(head.header, header) << describe(head.header) << differences(header, "rank 0", head.header);
      EXPECT_EQ(head.flags, history ? std::uint64_t{flag_weights_changed} : 0);
      EXPECT_EQ(head.count, static_cast<std::uint64_t>(layout.size(lanes)));

      const double* payload = steps::payload_of(record.data());
      const auto count = static_cast<double>(p.group_size());
      EXPECT_EQ(payload[0], count);
      for (std::int64_t g = 0; g < G; ++g) {
        // The same kernel with one block less, for the head: the values may be cut otherwise.
        const double unit = backend::statistics_unit(dtype_of<T>());
        const double std =
            count > 0 ? std::sqrt(m2[g] / count) : 0;  // of what the sum of differences has at most, each
        ASSERT_NEAR(payload[layout.mean(g)], mean[g], 4 * eps64 * (std::abs(mean[g]) + 1) + (unit + 8 * eps64) * std);
        ASSERT_NEAR(payload[layout.m2(g)], m2[g], (8 * eps64 * std::sqrt(count) + unit) * m2[g]);
      }
      const std::byte untouched{0xa5};
      const auto moments = index(layout.size(0));
      for (std::size_t i = sizeof(RecordHead) + moments * sizeof(double); i < record.size(); ++i)
        ASSERT_EQ(record[i], untouched);  // the window's lanes are written elsewhere
    }
}

/// The reporter counts the exchanges that records were made for.
TEST(FirstHalvesReports, StartedExchangesAreCounted) {
  Queue queue = backend::queue();
  const Partition p{1, 4, 3, 5};
  const auto x = normal<float>(p.elements(), 1);
  backend::Array<std::uint64_t> counts(2);
  backend::Array<ExchangeReport> report(1);
  auto record = bytes_for_record(steps::Layout{3}.size(0));
  ForwardArgs args{};
  args.x = x.data();
  args.dtype = DType::f32;
  args.norm = args.fine = p;
  const StateArrays arrays(3, false, 1);
  args.state = arrays.state;
  args.record = record.data();
  args.reporter = {report.data(), counts.data()};
  for (int call = 0; call < 3; ++call) queue.ops().forward_local(args, queue);
  queue.wait();
  EXPECT_EQ(counts[0], 3u);
  EXPECT_EQ(counts[1], 0u);
  EXPECT_EQ(report[0].started, 3u);
  EXPECT_EQ(report[0].status, ExchangeReport::fine);
}

/// What a layer sees of a tensor (src/plan.cpp makes the same).
struct Layout {
  const char* edge;
  Partition norm{}, affine{}, fine{};
  Coarsening to_norm{}, to_affine{};
};
Layout batch(const char* edge, const Shape& shape, Order order) {
  const Partition p = partition({Axis::channel}, shape, order);
  const std::int64_t modulo = std::max<std::int64_t>(1, shape[1]);
  return {edge, p, p, p, {1, modulo}, {1, modulo}};
}
Layout blocks(const char* edge, const Shape& shape, Order order, std::int64_t groups) {
  const std::int64_t C = shape[1];
  return {edge,
          partition({Axis::sample, Axis::group}, shape, order, {.groups = groups}),
          partition({Axis::channel}, shape, order),
          partition({Axis::sample, Axis::channel}, shape, order),
          {C / groups, std::max<std::int64_t>(1, shape[0] * groups)},
          {1, C}};
}
std::vector<Layout> layouts() {
  constexpr auto first = Order::channels_first, last = Order::channels_last;
  return {batch("planes off the vector's width", {3, 5, 7, 7}, first),
          batch("large planes", {2, 3, 60, 64}, first),
          batch("channels last", {3, 64, 9, 5}, last),
          batch("odd channels last", {2, 17, 30, 31}, last),
          batch("one channel", {2, 1, 5, 5}, first),
          batch("no samples", {0, 6, 4, 4}, first),
          batch("no channels", {2, 0, 4, 4}, first),
          blocks("groups", {2, 6, 7, 7}, first, 3),
          blocks("instances", {3, 5, 9, 11}, first, 5),
          blocks("one group", {2, 257, 3, 1}, last, 1),
          blocks("channels last", {2, 64, 5, 6}, last, 4),
          blocks("many samples", {70, 4, 2, 2}, first, 2),
          blocks("groups of no samples", {0, 6, 4, 4}, first, 3)};
}

TYPED_TEST(FirstHalves, BackwardSumsOverGroupsAndParameters) {
  using T = TypeParam;
  constexpr double u = compute_unit<T>;
  for (const Layout& layout : layouts())
    for (const Activation& activation : activations)
      for (const bool masked : {false, true}) {
        SCOPED_TRACE(std::string(layout.edge) + (masked ? ", masked" : "") + ", activation " +
                     std::to_string(static_cast<int>(activation.kind)));
        const std::int64_t G = layout.norm.groups(), F = layout.fine.groups(), P = layout.affine.groups(),
                           elements = layout.fine.elements();
        const auto x = normal<T>(elements, 1), dy = normal<T>(elements, 2);
        Walled<double> mean = normal<double>(G, 3, 0, 0.3), var(G), rstd = normal<double>(G, 4, 2, 0.1),
                       r = normal<double>(G, 5, 1, 0.1), d = normal<double>(G, 6, 0, 0.1), share(G);
        const auto weight = normal<float>(P, 7, 1, 0.5);
        const auto bias = normal<double>(P, 8, 0, 0.5);
        backend::Array<steps::FrameScalars> scalars(1);
        scalars[0] = {static_cast<double>(layout.norm.group_size()), 17};
        backend::Array<std::uint8_t> mask(index((elements + 7) / 8));
        for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<std::uint8_t>(i * 37 + i / 5);

        auto record = bytes_for_record(2 * G);
        double* sums = steps::payload_of(record.data());
        Walled<float> dweight(P);
        Walled<double> dbias(P), scratch(6 * F + 4 * P);
        BackwardArgs args{};
        args.x = x.data();
        args.dy = dy.data();
        args.dtype = dtype_of<T>();
        args.norm = layout.norm;
        args.affine = layout.affine;
        args.fine = layout.fine;
        args.to_norm = layout.to_norm;
        args.to_affine = layout.to_affine;
        args.activation = activation;
        args.mask = masked ? mask.data() : nullptr;
        args.weight = {weight.data(), DType::f32, 1};
        args.bias = {bias.data(), DType::f64, 0};
        args.dweight = {dweight.data(), DType::f32};
        args.dbias = {dbias.data(), DType::f64};
        args.wants_weight = true;
        args.frame = {mean.data(), var.data(), rstd.data(), r.data(), d.data(), share.data(), scalars.data()};
        args.sums = sums;
        args.scratch = scratch.data();
        args.record = record.data();
        args.header = Header("layer", Direction::backward, 0);
        this->queue.ops().backward_local(args, this->queue);
        this->queue.wait();
        EXPECT_TRUE(dweight.intact() && dbias.intact() && scratch.intact());
        EXPECT_EQ(scratch.size(), backward_scratch(args));

        RecordHead head{};
        std::memcpy(&head, record.data(), sizeof(head));
        EXPECT_EQ(head.header, Header("layer", Direction::backward, 17));
        EXPECT_EQ(head.count, static_cast<std::uint64_t>(2 * G));

        // Where z is so near to 0 that its rounding decides the gate, either way is right: `doubt` is what that makes.
        std::vector<double> g_sum(index(F)), gx_sum(g_sum), g_size(g_sum), gx_size(g_sum);
        std::vector<double> g_doubt(g_sum), gx_doubt(g_sum);
        for (std::int64_t i = 0; i < elements; ++i) {
          const std::int64_t f = layout.fine.group_of(i), g = layout.to_norm(f), p = layout.to_affine(f);
          const auto k = formulas::apply(rstd[g], {r[g], d[g]}, weight[p], bias[p]);
          const double centred = x[i] - mean[g], z = centred * k.scale + k.shift;
          bool open = activation.kind == ActivationKind::identity || z > 0;
          if (masked && activation.kind != ActivationKind::identity) open = (mask[index(i / 8)] >> (i % 8) & 1) != 0;
          const double slope = activation.kind == ActivationKind::leaky_relu ? activation.slope : 0;
          const double value = open ? dy[i] : slope * dy[i];
          if (!masked && std::abs(z) < 4 * u * (std::abs(x[i] * k.scale) + std::abs(k.shift) + 1)) {
            g_doubt[index(f)] += std::abs(dy[i]);
            gx_doubt[index(f)] += std::abs(dy[i] * centred);
          }
          g_sum[index(f)] += value;
          gx_sum[index(f)] += value * centred;
          g_size[index(f)] += std::abs(value);
          gx_size[index(f)] += std::abs(value * centred);
        }
        const double rounding = 2 * eps64 * std::sqrt(static_cast<double>(layout.fine.group_size() + F));
        std::vector<double> s1(index(G)), s2(s1), s1_size(s1), s2_size(s1);
        std::vector<double> dgamma(index(P)), dbeta(dgamma), dgamma_size(dgamma), dbeta_size(dgamma);
        for (std::int64_t f = 0; f < F; ++f) {
          const std::int64_t g = layout.to_norm(f), p = layout.to_affine(f);
          const double scale = weight[p] * r[g];
          const double g_error = (u + rounding) * g_size[index(f)] + g_doubt[index(f)],
                       gx_error =
                           (2 * u + rounding) * gx_size[index(f)] + rounding * g_size[index(f)] + gx_doubt[index(f)];
          s1[index(g)] += scale * g_sum[index(f)];
          s2[index(g)] += scale * gx_sum[index(f)];
          s1_size[index(g)] += std::abs(scale) * g_error;
          s2_size[index(g)] += std::abs(scale) * gx_error;
          dgamma[index(p)] += r[g] * rstd[g] * gx_sum[index(f)] + d[g] * g_sum[index(f)];
          dbeta[index(p)] += g_sum[index(f)];
          dgamma_size[index(p)] += std::abs(r[g] * rstd[g]) * gx_error + std::abs(d[g]) * g_error;
          dbeta_size[index(p)] += g_error;
        }
        for (std::int64_t g = 0; g < G; ++g) {
          ASSERT_NEAR(sums[g], s1[index(g)], s1_size[index(g)]) << "group " << g;
          ASSERT_NEAR(sums[G + g], s2[index(g)], s2_size[index(g)]) << "group " << g;
        }
        for (std::int64_t p = 0; p < P; ++p) {
          const double stored = store_unit<float> * std::abs(dgamma[index(p)]);
          ASSERT_NEAR(dweight[p], dgamma[index(p)], dgamma_size[index(p)] + stored) << "parameter " << p;
          ASSERT_NEAR(dbias[p], dbeta[index(p)], dbeta_size[index(p)]) << "parameter " << p;
        }
      }
}

/// The same call twice gives the same bits, whatever order the blocks come in.
TYPED_TEST(FirstHalves, RunsRepeatTheirBits) {
  using T = TypeParam;
  for (const Partition& p : {Partition{1, 150000, 3, 1}, Partition{1, 3, 2, 70000}, Partition{1, 900, 37, 16}}) {
    SCOPED_TRACE(text(p));
    const auto x = normal<T>(p.elements(), 1, 3.0, 2.0);
    Walled<double> mean(p.groups()), m2(p.groups());
    this->ops.moments({x.data(), dtype_of<T>(), p, mean.data(), m2.data()}, this->queue);
    for (int run = 0; run < 3; ++run) {
      Walled<double> again(p.groups()), again_m2(p.groups());
      this->ops.moments({x.data(), dtype_of<T>(), p, again.data(), again_m2.data()}, this->queue);
      EXPECT_TRUE(again.same_bits(mean) && again_m2.same_bits(m2));
    }
  }
}

}  // namespace
}  // namespace allnorm::kernel_test
