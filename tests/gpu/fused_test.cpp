// Fused calls of a lone rank against the separate kernels on the same values: statistics, state, outputs, gradients.
#include "fused_support.hpp"
#if ALLNORM_CUDA_EMULATED
#include "cuda_emulation.hpp"
#endif
#include "kernels/cuda/halves.hpp"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::kernel_test {
namespace {

struct Case {
  const char* edge;
  Partition p;
  bool on_few = false;  // multiprocessors
};
const Case cases[] = {{"one value", {1, 1, 1, 1}},
                      {"one channel", {1, 3, 1, 50}},
                      {"one channel in columns", {1, 333, 1, 1}},
                      {"a value of each channel", {1, 1, 5, 1}},
                      {"planes off the vector's width", {1, 4, 3, 49}},
                      {"planes in vectors", {1, 2, 17, 264}},
                      {"a warp for each channel", {1, 6, 64, 80}},
                      {"short runs, more channels than blocks", {1, 2, 257, 20}},
                      {"runs as columns", {1, 40, 5, 8}},
                      {"runs as columns off the vector's width", {1, 70, 3, 5}},
                      {"columns off the vector's width", {1, 150, 17, 1}},
                      {"columns in vectors", {1, 50, 64, 1}},
                      {"several tiles of columns", {1, 24, 1032, 1}},
                      {"an odd number of columns", {1, 120, 257, 1}},
                      {"more than is kept on chip, by runs", {1, 8, 3, 20480}, true},
                      {"more than is kept on chip, by columns", {1, 8000, 64, 1}, true},
                      {"more than is kept on chip, value by value", {1, 5, 7, 14001}, true}};

template <class T>
struct FusedKernels : OverTypes<T> {
  /// On few multiprocessors, which cannot keep p, or on all of them.
  static void on_chip_as(bool few, const Partition& p, Queue& queue) {
    queue.leave_multiprocessors(0);
    if (!few) return;
    use_few_multiprocessors(queue);
    const auto kept =
        cuda::fused_blocks(queue) * static_cast<std::int64_t>(cuda::properties_of(queue).sharedMemPerBlockOptin);
    EXPECT_GT(p.elements() * static_cast<std::int64_t>(sizeof(T)), kept);
  }
};
TYPED_TEST_SUITE(FusedKernels, Types);

TYPED_TEST(FusedKernels, ForwardIsTheSeparateKernels) {
  using T = TypeParam;
  for (const auto& [edge, p, on_few] : cases) {
    SCOPED_TRACE(std::string(edge) + " " + text(p));
    this->on_chip_as(on_few, p, this->queue);
    Layer<T> fused(p, batch_norm()), plain(p, batch_norm());
    const auto model = SumModel::of(fused.x, p);
    for (const bool with_residual : {true, false}) {
      fused.with_residual = plain.with_residual = with_residual;
      call(fused.forward(), this->queue, FusedPath::always);
      call(plain.forward(), this->queue, FusedPath::never);
      expect_same_state(fused, plain, model);
      // with the same frame, the same bits
      ForwardArgs given = plain.forward();
      given.source = FrameSource::given;
      given.frame = fused.frame.view();
      call(given, this->queue, FusedPath::never);
      EXPECT_TRUE(fused.y.same_bits(plain.y));
      EXPECT_TRUE(fused.intact());
    }
  }
}

TYPED_TEST(FusedKernels, ForwardInPlace) {
  using T = TypeParam;
  for (const Partition p : {Partition{1, 8, 3, 20480}, Partition{1, 8000, 64, 1}}) {
    SCOPED_TRACE(text(p));
    this->on_chip_as(true, p, this->queue);
    Layer<T> apart(p, batch_norm()), in_place(p, batch_norm());
    call(apart.forward(), this->queue, FusedPath::always);
    ForwardArgs args = in_place.forward();
    args.y = in_place.x.data();
    call(args, this->queue, FusedPath::always);
    EXPECT_TRUE(in_place.x.same_bits(apart.y));
  }
}

TYPED_TEST(FusedKernels, BackwardIsTheSeparateKernels) {
  using T = TypeParam;
  for (const auto& [edge, p, on_few] : cases) {
    SCOPED_TRACE(std::string(edge) + " " + text(p));
    this->on_chip_as(on_few, p, this->queue);
    Layer<T> fused(p, batch_norm()), plain(p, batch_norm());
    for (const auto& [activation, with_mask] :
         {std::pair{activations[0], false}, {activations[1], true}, {activations[2], false}}) {
      fused.activation = plain.activation = activation;
      fused.with_mask = plain.with_mask = fused.with_residual = plain.with_residual = with_mask;
      call(fused.forward(), this->queue, FusedPath::never);
      plain.frame = fused.frame;
      plain.mask = fused.mask;
      fused_backward(fused.backward(), this->queue);

      const std::int64_t G = p.groups();
      const steps::FrameView frame = fused.frame.view();
      std::vector<double> size_g(static_cast<std::size_t>(G)), size_gx(size_g);  // sums of absolute values
      for (std::int64_t i = 0; i < p.elements(); ++i) {
        const auto g = static_cast<std::size_t>(p.group_of(i));
        const double centre = frame.mean[g];
        size_g[g] += std::abs(fused.dy[i]);
        // the rounded centre is taken off first
        size_gx[g] += std::abs(fused.dy[i]) * (std::abs(fused.x[i] - centre) + compute_unit<T> * std::abs(centre));
      }
      Walled<double> scale(G), shift(G), sum_g(G), sum_gx(G), gain(G), slope(G), offset(G);
      for (std::int64_t g = 0; g < G; ++g) {
        const auto f = frame.get(g);
        const auto gate = formulas::apply(f.rstd, f.correction, fused.weight[g], fused.bias[g]);
        const auto map = formulas::apply_grad(f.rstd, f.correction.r, fused.weight[g], f.share, true,
                                              frame.scalars->count, fused.sums[g], fused.sums[G + g]);
        scale.set(g, gate.scale);
        shift.set(g, gate.shift);
        gain.set(g, map.gain);
        slope.set(g, map.slope);
        offset.set(g, map.offset);
      }
      const Gate gate{activation, with_mask ? fused.mask.data() : nullptr, scale.data(), shift.data()};
      this->ops.moments_grad(
          {fused.x.data(), fused.dy.data(), dtype_of<T>(), p, frame.mean, gate, sum_g.data(), sum_gx.data()},
          this->queue);
      const double unit = 2 * eps64 * (static_cast<double>(p.group_size()) + 4);
      for (std::int64_t g = 0; g < G; ++g) {
        const auto at = static_cast<std::size_t>(g);
        const double weight = std::abs(fused.weight[g]), rstd = frame.rstd[g];
        const auto terms = steps::grad_terms(frame.get(g), fused.weight[g], sum_g[g], sum_gx[g]);
        expect_close(fused.sums[g], terms.s1, unit * weight * size_g[at], "s1", g);
        expect_close(fused.sums[G + g], terms.s2, unit * weight * size_gx[at], "s2", g);
        expect_close(fused.dbias[g], terms.dbeta, unit * size_g[at], "dbias", g);
        expect_close(fused.dweight[g], terms.dgamma, unit * rstd * size_gx[at], "dweight", g);
      }
      this->ops.apply_grad(
          {fused.x.data(), fused.dy.data(), plain.dx.data(), with_mask ? plain.dresidual.data() : nullptr,
           dtype_of<T>(), p, frame.mean, gate, gain.data(), slope.data(), offset.data()},
          this->queue);
      if (with_mask) {
        EXPECT_TRUE(fused.dresidual.same_bits(plain.dresidual));
      }
      for (std::int64_t i = 0; i < p.elements(); ++i) {
        const std::int64_t g = p.group_of(i);
        const double size =
            std::abs(fused.dy[i] * gain[g]) + std::abs((fused.x[i] - frame.mean[g]) * slope[g]) + std::abs(offset[g]);
        // coefficients that the host may round otherwise, and then the result
        ASSERT_NEAR(fused.dx[i], plain.dx[i], 2 * (compute_unit<T> + store_unit<T>)*size + 2 * store_floor) << i;
      }
      if (!cuda::groupwise_fits(fused.backward(), cuda::properties_of(this->queue))) {
        // with the device's coefficients, the same bits
        const Choose choice(FusedPath::never);
        cuda::backward_finish(plain.backward(), {nullptr, 0, 0, fused.sums.data()}, this->queue);
        this->queue.wait();
        EXPECT_TRUE(fused.dx.same_bits(plain.dx));
      }
      EXPECT_TRUE(fused.intact());
    }
  }
}

/// A mask is made where a thread writes whole bytes of it: for halves in vectors.
TEST(FusedForward, MakesTheMaskOfHalves) {
  Queue queue = backend::queue();
  use_few_multiprocessors(queue);
  for (const Partition p : {Partition{1, 3, 5, 264}, Partition{1, 77, 24, 1}, Partition{1, 8, 3, 20480}}) {
    SCOPED_TRACE(text(p));
    Layer<bf16> fused(p, batch_norm()), plain(p, batch_norm());
    fused.with_mask = plain.with_mask = true;
    call(fused.forward(), queue, FusedPath::always);
    ForwardArgs given = plain.forward();
    given.source = FrameSource::given;
    given.frame = fused.frame.view();
    call(given, queue, FusedPath::never);
    EXPECT_TRUE(fused.y.same_bits(plain.y));
    EXPECT_EQ(fused.mask, plain.mask);
  }
}

TEST(FusedForward, TakesTheLayersStepsCallAfterCall) {
  Queue queue = backend::queue();
  Rules window = batch_norm(), minibatches = batch_norm(), renorm = batch_norm();
  window.window = 3;
  minibatches.minibatches = 2;
  renorm.renorm = renorm.cumulative = true;
  renorm.variant = RenormVariant::var;
  for (const Rules& rules : {batch_norm(), window, minibatches, renorm}) {
    const Partition p{1, 300, 17, 1};
    Layer<double> fused(p, rules), plain(p, rules);
    for (unsigned step = 0; step < 6; ++step) {
      SCOPED_TRACE(step);
      fused.x = plain.x = normal<double>(p.elements(), 20 + step, 0.1 * step, 1 + 0.2 * step);
      call(fused.forward(), queue, FusedPath::always);
      call(plain.forward(), queue, FusedPath::never);
      expect_same_state(fused, plain, SumModel::of(fused.x, p));
    }
  }
}

/// What the table's functions do: one launch in the second half, and nothing in the first.
TEST(FusedBackward, IsReachedThroughTheHalves) {
  Queue queue = backend::queue();
  const Partition p{1, 500, 64, 1};
  Layer<float> direct(p, batch_norm()), halves(p, batch_norm());
  call(direct.forward(), queue, FusedPath::always);
  halves.frame = direct.frame;
  fused_backward(direct.backward(), queue);
  const Choose choice(FusedPath::always);
  BackwardArgs args = halves.backward();
  cuda::backward_local(args, queue);
  queue.wait();
  EXPECT_TRUE(std::isnan(halves.sums[0])) << "the first half has taken sums";
  cuda::backward_finish(args, {nullptr, 0, 0, halves.sums.data()}, queue);
  queue.wait();
  EXPECT_TRUE(halves.dx.same_bits(direct.dx));
  EXPECT_TRUE(halves.dweight.same_bits(direct.dweight));
}

TEST(FusedForward, GivesTheSameBitsAgain) {
  Queue queue = backend::queue();
  use_few_multiprocessors(queue);
  const Partition p{1, 8, 3, 20480};
  Layer<float> first(p, batch_norm()), again(p, batch_norm());
  call(first.forward(), queue, FusedPath::always);
  call(again.forward(), queue, FusedPath::always);
  EXPECT_TRUE(first.y.same_bits(again.y));
  EXPECT_EQ(first.memory.values, again.memory.values);
}

TEST(Fused, CallsAreCapturedAndReplayed) {
  Queue queue = backend::queue();
  const Partition p{1, 40, 17, 64};
  Layer<float> fused(p, batch_norm()), plain(p, batch_norm());
  const cudaStream_t stream = cuda::stream_of(queue);
  constexpr int replays = 3;
  cudaGraphExec_t exec = nullptr;
  {
    const Choose choice(FusedPath::always);
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ForwardArgs args = fused.forward();
    cuda::forward_local(args, queue);
    cuda::forward_finish(args, {}, queue);
    cuda::fused_backward(fused.backward(), queue);
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    cudaGraphDestroy(graph);
  }
  EXPECT_EQ(*fused.memory.view().parity, 0u);
  for (int i = 0; i < replays; ++i) {
    ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    call(plain.forward(), queue, FusedPath::never);
    expect_same_state(fused, plain, SumModel::of(fused.x, p));
  }
  EXPECT_EQ(fused.memory.view().now().calls, replays);
  Layer<float> direct(p, batch_norm());
  direct.frame = fused.frame;
  fused_backward(direct.backward(), queue);
  EXPECT_TRUE(fused.dx.same_bits(direct.dx));
  cudaGraphExecDestroy(exec);
}

TEST(Fused, LeavesMultiprocessorsToOthers) {
  Queue queue = backend::queue();
  const int all = cuda::properties_of(queue).multiProcessorCount;
  const Partition p{1, 500, 64, 1};
  for (const int left : {0, 1, all - 1}) {
    SCOPED_TRACE(left);
    queue.leave_multiprocessors(left);
    EXPECT_EQ(cuda::fused_blocks(queue), all - left);
    Layer<float> fused(p, batch_norm()), plain(p, batch_norm());
#if ALLNORM_CUDA_EMULATED
    cuda_emulation::reset();
#endif
    call(fused.forward(), queue, FusedPath::always);
    fused_backward(fused.backward(), queue);
#if ALLNORM_CUDA_EMULATED
    EXPECT_EQ(cuda_emulation::most_cooperative_blocks(), static_cast<std::size_t>(all - left));
#endif
    call(plain.forward(), queue, FusedPath::never);
    expect_same_state(fused, plain, SumModel::of(fused.x, p));
  }
  queue.leave_multiprocessors(all);
  Layer<float> layer(p, batch_norm());
  const Choose choice(FusedPath::always);
  EXPECT_FALSE(cuda::fused_fits(layer.forward(), queue)) << "none is left";
  EXPECT_FALSE(cuda::fused_fits(layer.backward(), queue)) << "none is left";
}

TEST(Fused, FitsWhereItCanAndShouldPay) {
  Queue queue = backend::queue();
  Layer<float> small({1, 3, 5, 7}, batch_norm());
  EXPECT_FALSE(cuda::fused_fits(small.forward(), queue)) << "a grid's wait for a few values";

  const cudaDeviceProp& device = cuda::properties_of(queue);
  const std::int64_t values = static_cast<std::int64_t>(device.sharedMemPerBlockOptin) / 8 * device.multiProcessorCount;
  ForwardArgs forward = small.forward();
  BackwardArgs backward = small.backward();
  const auto sized = [&](std::int64_t rows) {
    forward.norm = forward.fine = backward.norm = backward.fine = backward.affine = {1, rows, 64, 1};
    forward.to_norm = forward.to_affine = backward.to_norm = backward.to_affine = {1, 64};
  };
  sized(values / 64);
  EXPECT_TRUE(cuda::fused_fits(forward, queue));
  EXPECT_TRUE(cuda::fused_fits(backward, queue));
  const auto refused = [&](auto change) {
    ForwardArgs other = forward;
    change(other);
    const Choose choice(FusedPath::always);
    return !cuda::fused_fits(other, queue);
  };
  std::byte record{};
  EXPECT_TRUE(refused([&](ForwardArgs& a) { a.record = &record; })) << "ranks exchange between the halves";
  EXPECT_TRUE(refused([](ForwardArgs& a) { a.source = FrameSource::running; }));
  EXPECT_TRUE(refused([](ForwardArgs& a) { a.rules.persists = false; }));
  EXPECT_TRUE(refused([](ForwardArgs& a) { a.rules.compensate = true, a.rules.window = 2; }));
  EXPECT_TRUE(refused([](ForwardArgs& a) { a.norm = a.fine = {1, 0, 64, 1}; })) << "no values";
  EXPECT_TRUE(refused([&](ForwardArgs& a) { a.mask = small.mask.data(); })) << "two threads to a byte";
  sized(64 * values);
  EXPECT_FALSE(cuda::fused_fits(forward, queue)) << "most would be read from memory again";
  EXPECT_FALSE(cuda::fused_fits(backward, queue));
}

}  // namespace
}  // namespace allnorm::kernel_test
