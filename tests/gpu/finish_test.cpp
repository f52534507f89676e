// The finishing halves on CUDA against plain loops over the steps: state, frame, output, and what happens to all three
// where ranks disagree.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "finish_support.hpp"
#include "kernels/cuda/kernels.hpp"

namespace allnorm::finish_test {
namespace {

Rules batch_norm() {
  Rules rules;
  rules.persists = true;
  rules.compensate = false;
  return rules;
}

/// A layer on the device and its twin of plain loops, and calls that both make.
struct Twins {
  Queue queue = backend::queue(2);
  Rules rules;
  Partition norm, fine;
  Coarsening to_norm, to_affine;
  LayerMemory layer, twin;
  FrameMemory frame, twin_frame;
  backend::Array<float> x, residual, y, weight, bias;
  backend::Array<double> mean, m2;
  backend::Array<std::uint8_t> mask;
  backend::Array<ExchangeReport> report;
  backend::Array<std::uint64_t> counts;
  unsigned seed = 1;

  Twins(const Rules& r, Partition n, Partition f, Coarsening fine_to_norm, Coarsening fine_to_affine)
      : rules(r),
        norm(n),
        fine(f),
        to_norm(fine_to_norm),
        to_affine(fine_to_affine),
        layer(r, n.groups()),
        twin(layer),
        frame(n.groups()),
        twin_frame(n.groups()),
        y(index(f.elements())),
        weight(normal<float>(fine_to_affine.modulo, 7, 1, 0.2)),
        bias(normal<float>(fine_to_affine.modulo, 8)),
        mean(index(n.groups())),
        m2(mean.size()),
        mask(index((f.elements() + 7) / 8)),
        report(1),
        counts(2) {}
  Twins(const Rules& r, Partition p) : Twins(r, p, p, {1, p.groups()}, {1, p.groups()}) {}

  void new_input() {
    x = normal<float>(fine.elements(), ++seed, 1.5, 2);
    residual = normal<float>(fine.elements(), ++seed);
    std::fill(mean.begin(), mean.end(), 0.0);
    std::fill(m2.begin(), m2.end(), 0.0);
    if (norm.group_size() == 0) return;
    for (std::int64_t i = 0; i < norm.elements(); ++i)
      mean[index(norm.group_of(i))] += static_cast<double>(x[index(i)]) / static_cast<double>(norm.group_size());
    for (std::int64_t i = 0; i < norm.elements(); ++i) {
      const double d = static_cast<double>(x[index(i)]) - mean[index(norm.group_of(i))];
      m2[index(norm.group_of(i))] += d * d;
    }
  }
  ForwardArgs args(LayerMemory& memory, FrameMemory& frames) {
    ForwardArgs a;
    a.x = x.data();
    a.residual = residual.data();
    a.y = y.data();
    a.dtype = DType::f32;
    a.norm = norm;
    a.fine = fine;
    a.to_norm = to_norm;
    a.to_affine = to_affine;
    a.activation = {ActivationKind::relu, 0};
    a.weight = {weight.data(), DType::f32, 1};
    a.bias = {bias.data(), DType::f32, 0};
    a.mask = mask.data();
    a.rules = rules;
    a.state = memory.view();
    a.frame = frames.view();
    a.mean = mean.data();
    a.m2 = m2.data();
    a.derives = rules.compensates();
    a.reporter = {report.data(), counts.data()};
    return a;
  }
  /// This rank's record, and those of peers with other moments.
  Records records(int ranks) {
    const steps::Layout layout{norm.groups()};
    const std::int64_t lanes = rules.compensates() ? rules.window - 1 : 0;
    Records all(ranks, layout.size(lanes));
    const LayerState state = layer.view();
    std::mt19937_64 engine(++seed);
    std::uniform_real_distribution<double> draw(0.5, 1.5);
    for (int rank = 0; rank < ranks; ++rank) {
      const double count = rank == 0 ? static_cast<double>(norm.group_size()) : 10 * rank;
      double* payload = all.payload(rank);
      payload[0] = count;
      for (std::int64_t g = 0; g < layout.groups; ++g) {
        const double m = rank == 0 ? mean[index(g)] : draw(engine);
        payload[layout.mean(g)] = m;
        payload[layout.m2(g)] = rank == 0 ? m2[index(g)] : count * draw(engine);
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
          payload[layout.dmean(lane, g)] = 0.01 * draw(engine);
          payload[layout.dvar(lane, g)] = -0.1 * draw(engine);
        }
      }
      RecordHead head{Header("bn", Direction::forward, 0), 0, static_cast<std::uint64_t>(all.count)};
      steps::Hashes hashes;
      if (rules.persists) {
        hashes = steps::hashes_of(state);
        for (std::int64_t c = 0; c < norm.groups(); ++c) hashes.add(steps::hashes_of(state, c));
      }
      steps::write_header(rules, state, hashes, head.header);
      all.head(rank) = head;
    }
    return all;
  }
  /// One call of both, lone for ranks = 0.
  void call(int ranks) {
    new_input();
    Records all = records(std::max(ranks, 1));
    ForwardArgs on_device = args(layer, frame), by_steps = args(twin, twin_frame);
    if (ranks > 0) on_device.record = by_steps.record = all.at(0);
    const Gathered gathered = ranks > 0 ? all.gathered() : Gathered{};
    cuda::forward_finish(on_device, gathered, queue);
    queue.wait();
    finish_by_steps(by_steps, gathered);
    expect_same(layer, twin);
    expect_near(frame.values, twin_frame.values, "frame");
    EXPECT_EQ(frame.scalars[0].call, twin_frame.scalars[0].call);
    EXPECT_EQ(frame.scalars[0].count, twin_frame.scalars[0].count);
    expect_output(on_device, y.data(), mask.data());
    EXPECT_EQ(report[0].status, ExchangeReport::fine);
    EXPECT_EQ(report[0].finished, counts[1]);
  }
};

/// Channels first with planes of vectors and without, channels last, wide, narrow, odd, one of everything.
const Partition shapes[] = {{1, 3, 17, 64}, {1, 4, 33, 49}, {1, 300, 40, 1}, {1, 75, 3, 1},    {1, 9, 257, 1},
                            {1, 2, 1, 999}, {1, 2, 300, 3}, {1, 1, 1, 1},    {1, 2, 2, 40000}, {1, 0, 5, 7}};

TEST(ForwardFinish, OfALoneRankAdvancesTheStateOncePerCall) {
  for (const auto& shape : shapes) {
    Twins twins(batch_norm(), shape);
    for (int call = 1; call <= 2; ++call) {
      twins.call(0);
      EXPECT_EQ(twins.layer.turn[0], static_cast<std::uint32_t>(call));
    }
  }
}

TEST(ForwardFinish, AddsTheRecordsOfTheRanks) {
  for (const auto& shape : shapes) {
    Twins twins(batch_norm(), shape);
    for (const int ranks : {1, 3, 3}) twins.call(ranks);
    EXPECT_EQ(twins.report[0].finished, 3u);
  }
}

TEST(ForwardFinish, TakesSumsThatWereAddedBefore) {
  Twins twins(batch_norm(), {1, 4, 33, 49});
  twins.call(1);
  twins.new_input();
  Records all = twins.records(1);
  Gathered gathered = all.gathered();
  gathered.sums = all.payload(0);
  ForwardArgs on_device = twins.args(twins.layer, twins.frame), by_steps = twins.args(twins.twin, twins.twin_frame);
  on_device.record = by_steps.record = all.at(0);
  cuda::forward_finish(on_device, {nullptr, 0, 0, all.payload(0)}, twins.queue);
  twins.queue.wait();
  finish_by_steps(by_steps, gathered);
  expect_same(twins.layer, twins.twin);
  expect_near(twins.frame.values, twins.twin_frame.values, "frame");
}

TEST(ForwardFinish, CorrectsWithBatchRenormalization) {
  for (const RenormVariant variant : {RenormVariant::var, RenormVariant::paper}) {
    Rules rules = batch_norm();
    rules.renorm = true;
    rules.variant = variant;
    Twins twins(rules, {1, 4, 33, 49});
    for (const int ranks : {0, 3, 3, 0}) twins.call(ranks);
  }
}

TEST(ForwardFinish, AveragesMiniBatchesAndTheWindow) {
  for (const bool compensate : {false, true})
    for (const Guard guard : {Guard::clamp, Guard::drop}) {
      Rules rules = batch_norm();
      rules.minibatches = 2;
      rules.window = 4;
      rules.renorm = true;
      rules.variant = RenormVariant::var;
      rules.weighting = Weighting::count;
      rules.running_source = RunningSource::window;
      rules.guard = guard;
      rules.compensate = compensate;
      Twins twins(rules, {1, 50, 40, 1});
      for (int call = 0; call < 11; ++call) twins.call(3);
      EXPECT_EQ(twins.layer.view().now().entries, 3);
      EXPECT_EQ(twins.layer.view().now().batches, 5);
    }
}

TEST(ForwardFinish, OfGroupsWithoutRunningStatisticsCountsCalls) {
  Rules rules = batch_norm();
  rules.persists = false;
  const std::int64_t samples = 3, channels = 12, groups = 4;
  const Coarsening to_norm{channels / groups, samples * groups}, to_affine{1, channels};
  const Partition first{1, 1, samples * groups, channels / groups * 10}, last{samples, 10, groups, channels / groups};
  for (const bool channels_last : {false, true}) {
    const Partition fine =
        channels_last ? Partition{samples, 10, channels, 1} : Partition{1, 1, samples * channels, 10};
    Twins twins(rules, channels_last ? last : first, fine, to_norm, to_affine);
    for (const int ranks : {1, 2}) twins.call(ranks);
    EXPECT_EQ(twins.layer.view().now().calls, 2);
  }
}

TEST(ForwardFinish, ChangesNothingWhereRanksDisagree) {
  const auto spoil_attribute = [](Records& all) { all.head(2).header.attributes[0] += 1; };
  const auto spoil_count = [](Records& all) { all.head(2).count += 1; };
  const auto flag = [](Records& all) { all.head(2).flags = flag_weights_changed; };
  const auto decline = [](Records& all) { all.head(2) = RecordHead(Header("other", Direction::backward, 7), "why"); };
  const auto check = [&](const auto& spoil, ExchangeReport::Status status) {
    for (const Partition shape : {Partition{1, 4, 33, 49}, Partition{1, 300, 40, 1}, Partition{1, 0, 3, 1}}) {
      Rules rules = batch_norm();
      rules.minibatches = 2;
      Twins twins(rules, shape);
      twins.call(3);
      twins.new_input();
      Records all = twins.records(3);
      spoil(all);
      ForwardArgs args = twins.args(twins.layer, twins.frame);
      args.record = all.at(0);
      cuda::forward_finish(args, all.gathered(), twins.queue);
      twins.queue.wait();
      EXPECT_EQ(twins.layer.turn[0], 1u);
      EXPECT_TRUE(twins.layer.last[0].fails);
      EXPECT_TRUE(std::all_of(twins.y.begin(), twins.y.end(), [](float v) { return std::isnan(v); }));
      EXPECT_EQ(twins.report[0].status, status);
      EXPECT_EQ(twins.report[0].rank, 2u);
      EXPECT_EQ(twins.report[0].finished, 2u);
      EXPECT_EQ(twins.report[0].other.header, all.head(2).header);
      EXPECT_EQ(twins.report[0].first.header, all.head(0).header);
      EXPECT_EQ(twins.report[0].other.reason, all.head(2).reason);
      twins.report[0].status = ExchangeReport::fine;
      twins.call(3);  // goes on from where it was
    }
  };
  check(spoil_attribute, ExchangeReport::mismatch);
  check(spoil_count, ExchangeReport::mismatch);
  check(flag, ExchangeReport::weights_changed);
  check(decline, ExchangeReport::declined);
}

TEST(ForwardFinish, WithTheRunningStatisticsOrAnEarlierFrameLeavesTheStateAlone) {
  Twins twins(batch_norm(), {1, 4, 33, 49});
  twins.call(0);
  twins.new_input();
  ForwardArgs args = twins.args(twins.layer, twins.frame);
  args.source = FrameSource::running;
  cuda::forward_finish(args, {}, twins.queue);
  twins.queue.wait();
  for (std::int64_t c = 0; c < 33; ++c)
    twins.twin_frame.view().set(c, steps::running_frame(twins.rules, twins.twin.view(), c));
  expect_near(twins.frame.values, twins.twin_frame.values, "frame");
  EXPECT_EQ(twins.frame.scalars[0].count, 0);
  expect_output(args, twins.y.data(), twins.mask.data());
  expect_same(twins.layer, twins.twin);

  args.source = FrameSource::given;
  args.y = twins.x.data();  // in place
  const backend::Array<float> expected = twins.y;
  cuda::forward_finish(args, {}, twins.queue);
  twins.queue.wait();
  EXPECT_EQ(twins.x, expected);
  expect_near(twins.frame.values, twins.twin_frame.values, "frame");
  expect_same(twins.layer, twins.twin);
}

/// dx and dresidual by their definitions, from the frame and the summed s1 and s2.
void check_backward(const Partition& shape, int ranks, bool disagree, bool masked) {
  const std::int64_t groups = shape.groups(), elements = shape.elements();
  Queue queue = backend::queue(2);
  FrameMemory frame(groups);
  for (std::int64_t g = 0; g < groups; ++g) {
    const double t = static_cast<double>(g % 5);
    frame.view().set(g, {0.3 * t, 1.0, 0.5 + 0.1 * t, 0.5, {1.5, 0.25}});
  }
  frame.scalars[0] = {200, 4};
  const auto x = normal<float>(elements, 1), dy = normal<float>(elements, 2);
  const auto weight = normal<float>(groups, 3, 1, 0.2), bias = normal<float>(groups, 4);
  backend::Array<float> dx(x.size()), dresidual(x.size());
  backend::Array<std::uint8_t> mask(index((elements + 7) / 8), 0x5a);
  Records all(ranks, 2 * groups);
  for (int rank = 0; rank < ranks; ++rank) {
    all.head(rank) = {Header("bn", Direction::backward, 4), 0, static_cast<std::uint64_t>(2 * groups)};
    const auto sums = normal<double>(2 * groups, static_cast<unsigned>(5 + rank), 0, 10);
    std::copy(sums.begin(), sums.end(), all.payload(rank));
  }
  if (disagree) all.head(1).header.set(Field::call, std::uint64_t{5});
  backend::Array<ExchangeReport> report(1);
  backend::Array<std::uint64_t> counts(2);

  BackwardArgs args;
  args.x = x.data();
  args.dy = dy.data();
  args.dx = dx.data();
  args.dresidual = dresidual.data();
  args.dtype = DType::f32;
  args.norm = args.fine = args.affine = shape;
  args.to_norm = args.to_affine = {1, groups};
  args.activation = {ActivationKind::leaky_relu, 0.25};
  args.mask = masked ? mask.data() : nullptr;
  args.weight = {weight.data(), DType::f32, 1};
  args.bias = {bias.data(), DType::f32, 0};
  args.frame = frame.view();
  args.record = all.at(0);
  args.reporter = {report.data(), counts.data()};
  cuda::backward_finish(args, all.gathered(), queue);
  queue.wait();

  EXPECT_EQ(report[0].finished, 1u);
  EXPECT_EQ(report[0].status, disagree ? ExchangeReport::mismatch : ExchangeReport::fine);
  constexpr double unit = std::numeric_limits<float>::epsilon() / 2.0;
  for (std::int64_t i = 0; i < elements; ++i) {
    const std::int64_t g = shape.group_of(i);
    const auto f = frame.view().get(g);
    const double scale = static_cast<double>(weight[index(g)]) * f.rstd * f.correction.r;
    const double centred = static_cast<double>(x[index(i)]) - f.mean;
    const double shift = static_cast<double>(weight[index(g)]) * f.correction.d + static_cast<double>(bias[index(g)]);
    const double z = centred * scale + shift;
    const bool open = masked ? ((mask[index(i / 8)] >> (i % 8)) & 1) != 0 : z > 0;
    const double given = static_cast<double>(dy[index(i)]);
    if (disagree) {
      ASSERT_TRUE(std::isnan(dx[index(i)])) << i;
      continue;
    }
    // the sign of a z that rounding may turn is not known
    if (!masked && std::abs(z) <= 4 * unit * (std::abs(centred * scale) + std::abs(shift))) continue;
    const double upstream = open ? given : 0.25 * given;
    ASSERT_EQ(static_cast<double>(dresidual[index(i)]), upstream) << i;
    const double s1 = steps::summed(all.gathered(), g), s2 = steps::summed(all.gathered(), groups + g);
    const double per_value = f.share / 200;
    const double a = upstream * scale, b = centred * per_value * f.rstd * f.rstd * f.rstd * s2,
                 c = per_value * f.rstd * s1;
    ASSERT_NEAR(static_cast<double>(dx[index(i)]), a - b - c,
                4 * unit * (std::abs(a) + std::abs(b) + std::abs(c) + std::abs(f.mean)))
        << i;
  }
}

TEST(BackwardFinish, AddsTheSumsOfTheRanks) {
  for (const auto& shape : shapes)
    for (const int ranks : {1, 3})
      for (const bool masked : {false, true}) check_backward(shape, ranks, false, masked);
}

TEST(BackwardFinish, GivesNanWhereRanksDisagree) {
  for (const auto& shape : shapes) check_backward(shape, 2, true, false);
}

TEST(BackwardFinish, ChecksTheRecordsAlsoWhereNoGradientIsAskedFor) {
  Queue queue = backend::queue(2);
  Records all(2, 6);
  for (int rank = 0; rank < 2; ++rank)
    all.head(rank) = {Header(rank == 0 ? "bn1" : "bn2", Direction::backward, 4), 0, 6};
  backend::Array<ExchangeReport> report(1);
  backend::Array<std::uint64_t> counts(2);
  BackwardArgs args;
  args.norm = args.fine = {1, 2, 3, 4};
  args.record = all.at(0);
  args.reporter = {report.data(), counts.data()};
  cuda::backward_finish(args, all.gathered(), queue);
  queue.wait();
  EXPECT_EQ(report[0].status, ExchangeReport::mismatch);
  EXPECT_EQ(report[0].rank, 1u);
  EXPECT_EQ(report[0].finished, 1u);
}

}  // namespace
}  // namespace allnorm::finish_test
