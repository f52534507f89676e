// Layer norm over ranks that hold parts of every row: gamma along rows in the halves, and what they do when ranks
// disagree.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../kernels_support.hpp"

namespace allnorm::kernel_test {
namespace {

constexpr double eps = 1e-5;

/// One rank's columns of every row, its parameters, and what its call writes.
template <class T>
struct RankOfRows {
  std::int64_t count, columns;
  Walled<T> x, dy, y, dx;
  Walled<double> weight, bias, dweight, dbias, scratch;
  Walled<double> mean, m2, of_mean, of_var, of_rstd, of_share;
  backend::Array<Counters> counters;
  backend::Array<std::uint32_t> turn;
  backend::Array<Turn> last;
  backend::Array<steps::FrameScalars> scalars;
  backend::Array<ExchangeReport> report;
  backend::Array<std::uint64_t> counts;

  RankOfRows(std::int64_t rows, std::int64_t columns_, unsigned seed)
      : count(rows),
        columns(columns_),
        x(normal<T>(rows * columns, seed, 1.0, 2.0)),
        dy(normal<T>(rows * columns, seed + 1)),
        y(rows * columns),
        dx(rows * columns),
        weight(normal<double>(columns, seed + 2)),
        bias(normal<double>(columns, seed + 3)),
        dweight(columns),
        dbias(columns),
        scratch(backward_scratch(cut())),
        mean(rows),
        m2(rows),
        of_mean(rows),
        of_var(rows),
        of_rstd(rows),
        of_share(rows),
        counters(2),
        turn(1, 0u),
        last(1),
        scalars(1),
        report(1),
        counts(2) {}

  /// Every value has the gamma of its column.
  LayerCall cut() const {
    LayerCall call;
    call.norm = call.fine = {1, 1, count, columns};
    call.affine = {1, count, columns, 1};
    call.to_norm = {1, count};
    call.along = true;
    return call;
  }
  steps::FrameView frame() {
    return {of_mean.data(), of_var.data(), of_rstd.data(), nullptr, nullptr, of_share.data(), scalars.data()};
  }
  ForwardArgs forward(std::byte* record) {
    ForwardArgs args;
    describe(args, Direction::forward, record);
    args.y = y.data();
    args.rules.eps = eps;
    args.state.counters = counters.data();
    args.state.parity = turn.data();
    args.state.last = last.data();
    args.mean = mean.data();
    args.m2 = m2.data();
    return args;
  }
  BackwardArgs backward(std::byte* record, double* sums) {
    BackwardArgs args;
    describe(args, Direction::backward, record);
    args.dy = dy.data();
    args.dx = dx.data();
    args.dweight = {dweight.data(), DType::f64};
    args.dbias = {dbias.data(), DType::f64};
    args.wants_weight = true;
    args.sums = sums;
    args.scratch = scratch.data();
    return args;
  }

 private:
  void describe(LayerCall& call, Direction direction, std::byte* record) {
    call = cut();
    call.x = x.data();
    call.dtype = dtype_of<T>();
    call.weight = {weight.data(), DType::f64, 1};
    call.bias = {bias.data(), DType::f64, 0};
    call.frame = frame();
    call.record = record;
    call.header = Header("rows", direction, 0);
    if (record != nullptr) call.reporter = {report.data(), counts.data()};
  }
};

/// Rows over all ranks, from the definition. Sums about 0 travel, which costs eps64 * (mean / std)^2.
template <class T>
void expect_call(std::vector<RankOfRows<T>>& ranks) {
  constexpr double u = compute_unit<T>, floor = sizeof(T) == 2 ? store_floor : 0.0;
  constexpr double sums = 24 * u;  // up to 16 values are added in the compute type, each rounded a few times before
  for (std::int64_t r = 0; r < ranks[0].count; ++r) {
    double n = 0, size1 = 0, size2 = 0, spread = 0;
    long double sum = 0, squares = 0, sum1 = 0, sum2 = 0;
    const auto each = [&](const auto& body) {
      for (auto& rank : ranks)
        for (std::int64_t j = 0; j < rank.columns; ++j) body(rank, j, r * rank.columns + j);
    };
    each([&](auto& rank, std::int64_t, std::int64_t i) { n += 1, sum += rank.x[i]; });
    const auto mean = static_cast<double>(sum / n);
    each([&](auto& rank, std::int64_t, std::int64_t i) {
      const double d = rank.x[i] - mean;
      squares += d * d, spread = std::max(spread, std::abs(d));
    });
    const double rstd = 1 / std::sqrt(static_cast<double>(squares) / n + eps);
    each([&](auto& rank, std::int64_t j, std::int64_t i) {
      const double g = rank.weight[j] * rank.dy[i], d = rank.x[i] - mean;
      sum1 += g, sum2 += g * d, size1 += std::abs(g), size2 += std::abs(g * d) + std::abs(g) * spread * u;
    });
    const auto s1 = static_cast<double>(sum1), s2 = static_cast<double>(sum2);
    each([&](auto& rank, std::int64_t j, std::int64_t i) {
      const double z = (rank.x[i] - mean) * rstd, w = rank.weight[j], b = rank.bias[j], y = z * w + b;
      ASSERT_NEAR(
          rank.y[i], y,
          sums * ((2 * std::abs(z) + spread * rstd) * std::abs(w) + std::abs(b)) + store_unit<T> * std::abs(y) + floor);
      const double dx = w * rank.dy[i] * rstd - (rstd * s1 + z * rstd * rstd * s2) / n;
      const double size =
          std::abs(w * rank.dy[i] * rstd) + (rstd * size1 + (std::abs(z) + spread * rstd) * rstd * rstd * size2) / n;
      ASSERT_NEAR(rank.dx[i], dx, 2 * sums * size + store_unit<T> * std::abs(dx) + floor);
    });
  }
  for (auto& rank : ranks)
    for (std::int64_t j = 0; j < rank.columns; ++j) {
      double gamma = 0, beta = 0, size = 0;
      for (std::int64_t r = 0; r < rank.count; ++r) {
        const double z = (rank.x[r * rank.columns + j] - rank.of_mean[r]) * rank.of_rstd[r];
        gamma += rank.dy[r * rank.columns + j] * z, beta += rank.dy[r * rank.columns + j];
        size += std::abs(rank.dy[r * rank.columns + j]) * (1 + std::abs(z));
      }
      ASSERT_NEAR(rank.dweight[j], gamma, 4 * eps64 * static_cast<double>(rank.count) * size);
      ASSERT_NEAR(rank.dbias[j], beta, 4 * eps64 * static_cast<double>(rank.count) * size);
    }
}

template <class T>
struct RowsExchange : OverTypes<T> {
  const Ops& table = this->queue.ops();
};
TYPED_TEST_SUITE(RowsExchange, Types);

TYPED_TEST(RowsExchange, RanksThatHoldPartsOfRows) {
  using T = TypeParam;
  for (const std::int64_t rows : {1, 5, 300}) {
    SCOPED_TRACE(rows);
    std::vector<RankOfRows<T>> ranks;
    ranks.reserve(3);
    for (const std::int64_t columns : {40, 1, 17})
      ranks.emplace_back(rows, columns, 7u + 10u * static_cast<unsigned>(ranks.size()));
    const std::size_t stride = sizeof(RecordHead) + sizeof(double) * static_cast<std::size_t>(1 + 2 * rows);
    backend::Array<std::byte> records(3 * stride);
    const auto record = [&](std::size_t rank) { return records.data() + rank * stride; };
    const Gathered gathered{records.data(), stride, 3, nullptr};
    std::vector<ForwardArgs> forward;
    std::vector<BackwardArgs> backward;
    for (std::size_t r = 0; r < 3; ++r) {
      forward.push_back(ranks[r].forward(record(r)));
      backward.push_back(ranks[r].backward(record(r), steps::payload_of(record(r))));
    }
    for (ForwardArgs& args : forward) this->table.forward_local(args, this->queue);
    for (const ForwardArgs& args : forward) this->table.forward_finish(args, gathered, this->queue);
    for (BackwardArgs& args : backward) this->table.backward_local(args, this->queue);
    for (const BackwardArgs& args : backward) this->table.backward_finish(args, gathered, this->queue);
    this->queue.wait();
    expect_call(ranks);
    for (auto& rank : ranks) {
      EXPECT_EQ(rank.turn[0], 1u);
      EXPECT_EQ(rank.counters[1].calls, 1);
      EXPECT_EQ(rank.scalars[0].count, 58);
      EXPECT_EQ(rank.report[0].started, 2u);
      EXPECT_EQ(rank.report[0].finished, 2u);
      EXPECT_EQ(rank.report[0].status, ExchangeReport::fine);
    }
  }
}

TYPED_TEST(RowsExchange, RowsThatDoNotFitOnChip) {
  using T = TypeParam;
  std::vector<RankOfRows<T>> ranks;
  ranks.emplace_back(2, 150000, 3u);
  Buffer<double> sums(4, this->queue);
  const Gathered own{nullptr, 0, 0, sums.data()};
  ForwardArgs forward = ranks[0].forward(nullptr);
  BackwardArgs backward = ranks[0].backward(nullptr, sums.data());
  this->table.forward_local(forward, this->queue);
  this->table.forward_finish(forward, {}, this->queue);
  this->table.backward_local(backward, this->queue);
  this->table.backward_finish(backward, own, this->queue);
  this->queue.wait();
  expect_call(ranks);
  EXPECT_EQ(ranks[0].turn[0], 1u);
}

TYPED_TEST(RowsExchange, RanksThatDisagreeChangeNothing) {
  using T = TypeParam;
  std::vector<RankOfRows<T>> ranks;
  ranks.reserve(3);
  for (unsigned r = 0; r < 3; ++r) ranks.emplace_back(4, 16, 7u + 10u * r);
  const std::size_t stride = sizeof(RecordHead) + sizeof(double) * 9;
  backend::Array<std::byte> records(3 * stride);
  const Gathered gathered{records.data(), stride, 3, nullptr};
  for (std::size_t r = 0; r < 3; ++r) {
    ForwardArgs args = ranks[r].forward(records.data() + r * stride);
    if (r == 2) args.header.attributes[0] = 1;
    this->table.forward_local(args, this->queue);
  }
  ForwardArgs args = ranks[0].forward(records.data());
  this->table.forward_finish(args, gathered, this->queue);
  this->queue.wait();
  EXPECT_EQ(ranks[0].turn[0], 0u);
  EXPECT_EQ(ranks[0].counters[0].calls, 0);
  EXPECT_TRUE(ranks[0].last[0].fails);
  EXPECT_EQ(ranks[0].report[0].status, ExchangeReport::mismatch);
  EXPECT_EQ(ranks[0].report[0].rank, 2u);
  EXPECT_EQ(ranks[0].report[0].finished, 1u);
  EXPECT_NE(ranks[0].report[0].first.header, ranks[0].report[0].other.header);
  for (std::int64_t i = 0; i < ranks[0].y.size(); ++i) ASSERT_TRUE(std::isnan(ranks[0].y[i]));
  BackwardArgs backward = ranks[0].backward(records.data(), steps::payload_of(records.data()));
  this->table.backward_local(backward, this->queue);
  this->table.backward_finish(backward, gathered, this->queue);
  this->queue.wait();
  for (std::int64_t i = 0; i < ranks[0].dx.size(); ++i) ASSERT_TRUE(std::isnan(ranks[0].dx[i]));
}

}  // namespace
}  // namespace allnorm::kernel_test
