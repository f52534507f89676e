// A lone rank's call slab by slab on the CPU (kernels/cpu/slabs.hpp) against the same call in two halves: the same
// bits.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "kernels/ops.hpp"
#include "kernels_support.hpp"
#include "src/layer_memory.hpp"
#include "src/parameters.hpp"
#include "src/plan.hpp"

namespace allnorm::kernel_test {
namespace {

struct Case {
  const char* layer;
  Shape shape;
  Order order = Order::channels_first;
  bool residual = false;
  bool own_gammas = false;  // of every value, in place of the layer's
  int least_parts = 0;      // of gamma's sums along groups: with more threads there are no slabs
};

/// Everything that a case's layer can be given.
template <class T>
struct Inputs {
  explicit Inputs(const Case& c)
      : layer(parse_layer(c.layer)),
        plan(plan_of(layer, c)),
        has_residual(c.residual),
        channels(c.shape[1]),
        size(c.shape.elements()),
        groups(plan.norm.groups()),
        gammas(plan.affine.groups()),
        x(normal<T>(size, 1, 0.5, 2)),
        dy(normal<T>(size, 2)),
        residual(normal<T>(size, 3)),
        weight(normal<compute_t<T>>(gammas, 4, 1)),
        bias(normal<double>(gammas, 5)),
        tau(normal<double>(gammas, 6)),
        eps(normal<double>(gammas, 7, 0, 1e-3)),
        direct(normal<float>(groups, 8)) {}

  static Plan plan_of(const Layer& layer, const Case& c) {
    Plan plan = plan_for(layer, c.shape, c.order);
    if (!c.own_gammas) return plan;
    plan.affine = {1, 1, c.shape.elements(), 1};
    plan.fine = plan.norm;
    plan.to_norm = {1, plan.norm.groups()};
    plan.along = true;
    return plan;
  }

  const Layer layer;
  const Plan plan;
  const bool has_residual;
  const std::int64_t channels, size, groups, gammas;
  const Walled<T> x, dy, residual;
  const Walled<compute_t<T>> weight;
  const Walled<double> bias, tau, eps;
  const Walled<float> direct;
};

/// A call of a lone rank, forward and backward, that asks for everything.
template <class T>
class Call {
 public:
  Call(const Inputs<T>& in, Queue& queue)
      : in_(in),
        memory_(in.layer, in.channels, queue),
        y_(in.size),
        dx_(in.size),
        dresidual_(in.size),
        dweight_(in.gammas),
        dbias_(in.gammas),
        frame_(7 * in.groups + 2),
        dtau_(in.gammas),
        deps_(in.gammas),
        mask_(index((in.size + 7) / 8), 0xaa) {}

  /// The route that each direction takes, or in two halves; with the gradients of gamma and beta or without.
  std::vector<Route> run(Queue& queue, bool in_halves, bool wants_weight = true) {
    ForwardArgs forward;
    describe(forward);
    forward.residual = in_.has_residual ? in_.residual.data() : nullptr;
    forward.y = y_.data();
    forward.mask = masked() ? mask_.data() : nullptr;
    forward.state = memory_.view();
    std::vector<double> moments(index(2 * in_.groups));
    forward.mean = moments.data(), forward.m2 = forward.mean + in_.groups;
    if (in_halves)
      queue.ops().moments({forward.x, forward.dtype, forward.norm, forward.mean, forward.m2}, queue);
    else
      queue.ops().forward_local(forward, queue);
    queue.ops().forward_finish(forward, {}, queue);

    BackwardArgs backward;
    describe(backward);
    backward.dy = in_.dy.data();
    backward.dx = dx_.data();
    backward.dresidual = in_.has_residual ? dresidual_.data() : nullptr;
    backward.mask = forward.mask;
    backward.dweight = {dweight_.data(), dtype_of<compute_t<T>>()};
    backward.dbias = {dbias_.data(), dtype_of<compute_t<T>>()};
    backward.wants_weight = wants_weight;
    if (backward.level.given())
      backward.dlevel = {dtau_.data(), DType::f64}, backward.deps = {deps_.data(), DType::f64};
    if (!backward.level.given()) backward.direct = {{in_.direct.data(), DType::f32}, {in_.direct.data(), DType::f32}};
    std::vector<double> record(index(2 * in_.groups) + sizeof(RecordHead) / sizeof(double));
    auto* const bytes = reinterpret_cast<std::byte*>(record.data());
    backward.sums = steps::payload_of(bytes);
    backward.record = in_halves ? bytes : nullptr;  // of something to exchange
    queue.ops().backward_local(backward, queue);
    queue.ops().backward_finish(backward, {nullptr, 0, 0, backward.sums}, queue);
    return {forward.route, backward.route};
  }

  /// The gradients of gammas that every value has its own of against sums of one term each.
  void expect_gamma_sums(Queue& queue) {
    BackwardArgs call;
    describe(call);
    Walled<double> dweight(in_.gammas), dbias(in_.gammas);
    backend::affine_grad({in_.x.data(),
                          in_.dy.data(),
                          call.dtype,
                          call.norm,
                          call.frame.mean,
                          {call.activation, masked() ? mask_.data() : nullptr, call.frame.rstd},
                          along_of(call),
                          dweight.data(),
                          dbias.data()},
                         queue);
    for (std::int64_t i = 0; i < in_.gammas; ++i) {
      ASSERT_EQ(dweight_.data()[i], static_cast<compute_t<T>>(dweight[i])) << i;
      ASSERT_EQ(dbias_.data()[i], static_cast<compute_t<T>>(dbias[i])) << i;
    }
    EXPECT_TRUE(dweight_.intact() && dbias_.intact());
  }
  void expect_same_dx(const Call& other) const {
    EXPECT_TRUE(dx_.same_bits(other.dx_) && dx_.intact());
    EXPECT_TRUE(dresidual_.same_bits(other.dresidual_) && dresidual_.intact());
  }

  void expect_same(const Call& other) const {
    for (const auto& [mine, theirs, name] :
         {Pair{&y_, &other.y_, "y"}, {&dx_, &other.dx_, "dx"}, {&dresidual_, &other.dresidual_, "dresidual"}})
      EXPECT_TRUE(mine->same_bits(*theirs) && mine->intact()) << name;
    EXPECT_TRUE(dweight_.same_bits(other.dweight_) && dweight_.intact());
    EXPECT_TRUE(dbias_.same_bits(other.dbias_) && dbias_.intact());
    EXPECT_TRUE(frame_.same_bits(other.frame_) && frame_.intact());
    EXPECT_TRUE(dtau_.same_bits(other.dtau_) && dtau_.intact());
    EXPECT_TRUE(deps_.same_bits(other.deps_) && deps_.intact());
    EXPECT_EQ(mask_, other.mask_);
  }

 private:
  struct Pair {
    const Walled<T>*mine, *theirs;
    const char* name;
  };
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }
  bool masked() const { return in_.has_residual && in_.layer.options.activation.kind != ActivationKind::identity; }

  void describe(LayerCall& call) {
    call.x = in_.x.data();
    call.dtype = dtype_of<T>();
    call.norm = in_.plan.norm, call.affine = in_.plan.affine, call.fine = in_.plan.fine;
    call.to_norm = in_.plan.to_norm, call.to_affine = in_.plan.to_affine, call.along = in_.plan.along;
    call.rules = memory_.rules();
    call.activation = in_.layer.options.activation;
    call.weight = {in_.weight.data(), dtype_of<compute_t<T>>(), 1, in_.plan.along ? 0.5 : 0};
    call.bias = {in_.bias.data(), DType::f64};
    if (in_.layer.row->tensor("tau") != nullptr)
      call.level = {in_.tau.data(), DType::f64}, call.learned_eps = {in_.eps.data(), DType::f64};
    double* const at = frame_.data();
    call.frame = {at,
                  at + in_.groups,
                  at + 2 * in_.groups,
                  nullptr,
                  nullptr,
                  at + 3 * in_.groups,
                  reinterpret_cast<steps::FrameScalars*>(at + 7 * in_.groups),
                  at + 4 * in_.groups};
  }

  const Inputs<T>& in_;
  LayerMemory memory_;
  Walled<T> y_, dx_, dresidual_;
  Walled<compute_t<T>> dweight_, dbias_;
  Walled<double> frame_, dtau_, deps_;
  std::vector<std::uint8_t> mask_;
};

template <class T>
struct Slabs : OverTypes<T> {};
TYPED_TEST_SUITE(Slabs, Types);

constexpr auto last = Order::channels_last;
const Case cases[] = {
    {"instance_norm", {5, 24, 57, 61}},
    {"instance_norm", {9, 24, 31, 61}, last},
    {"instance_norm:track=true", {40, 24, 31, 17}},
    {"group_norm:groups=4", {40, 24, 31, 17}},
    {"group_norm:groups=4:activation=relu", {9, 24, 31, 61}, last, true},
    {"group_norm:groups=1", {9, 24, 31, 61}, last},
    {"filter_response_norm", {7, 24, 61, 57}},
    {"filter_response_norm", {9, 24, 31, 61}, last},
    {"positional_norm", {9, 24, 31, 61}},
    {"layer_norm:activation=leaky_relu", {1100, 515}, Order::channels_first, true, false, 3},
    {"layer_norm", {9000, 33}, Order::channels_first, false, false, 3},
    {"rms_norm:activation=relu", {1100, 515}, Order::channels_first, false, false, 3},
    {"layer_norm:activation=relu", {521, 2101}, Order::channels_first, false, false, 2},
    {"instance_norm:track=false", {5, 24, 57, 61}, Order::channels_first, false, true},
    {"layer_norm", {1100, 515}, Order::channels_first, true, true},
};

TYPED_TEST(Slabs, HaveTheBitsOfHalves) {
  for (const Case& c : cases) {
    const Inputs<TypeParam> inputs(c);
    Queue alone = Queue::cpu(1);
    Call<TypeParam> halves(inputs, alone);
    EXPECT_EQ(halves.run(alone, true), (std::vector{Route::halves, Route::halves}));
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(std::string(c.layer) + " " + to_string(c.shape) + (c.order == last ? " channels last, " : ", ") +
                   std::to_string(threads) + " threads");
      Queue pool = Queue::cpu(threads);
      Call<TypeParam> slabs(inputs, pool);
      const bool enough = c.least_parts == 0 || threads <= c.least_parts;
      EXPECT_EQ(slabs.run(pool, false), (std::vector{Route::groups, enough ? Route::groups : Route::halves}));
      slabs.expect_same(halves);
    }
  }
}

// Gradients of maps of gamma and dx in one pass, slab by slab, against passes of their own over the whole tensor.
TYPED_TEST(Slabs, OfMapsHaveTheBitsOfWholeMaps) {
  for (const char* layer : {"batch_norm", "batch_norm:activation=relu"})
    for (const Order order : {Order::channels_first, last}) {
      const Inputs<TypeParam> inputs({layer, {9, 24, 31, 61}, order, true, true});
      Queue alone = Queue::cpu(1);
      Call<TypeParam> wholes(inputs, alone);
      wholes.run(alone, false, false);
      for (const int threads : {1, 3}) {
        SCOPED_TRACE(std::string(layer) + (order == last ? " channels last, " : ", ") + std::to_string(threads));
        Queue pool = Queue::cpu(threads);
        Call<TypeParam> slabs(inputs, pool);
        slabs.run(pool, false);
        slabs.expect_same_dx(wholes);
        slabs.expect_gamma_sums(pool);
      }
    }
}

// Where the outermost index of the tensor is summed over, or ranks exchange, there is nothing to cut.
TEST(SlabsOfABatch, AreNone) {
  Queue queue = Queue::cpu(1);
  const Inputs<float> inputs({"batch_norm", {40, 24, 31, 17}});
  Call<float> call(inputs, queue);
  EXPECT_EQ(call.run(queue, false), (std::vector{Route::halves, Route::halves}));
}

}  // namespace
}  // namespace allnorm::kernel_test
