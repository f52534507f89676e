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

/// A call of a lone rank, forward and backward, with everything that the layer can be given and asked for.
template <class T>
class Call {
 public:
  Call(const Case& c, Queue& queue)
      : layer_(parse_layer(c.layer)),
        plan_(plan_of(layer_, c)),
        memory_(layer_, c.shape[1], queue),
        size_(c.shape.elements()),
        groups_(plan_.norm.groups()),
        gammas_(plan_.affine.groups()),
        x_(normal<T>(size_, 1, 0.5, 2)),
        dy_(normal<T>(size_, 2)),
        residual_(normal<T>(size_, 3)),
        weight_(normal<compute_t<T>>(gammas_, 4, 1)),
        bias_(normal<double>(gammas_, 5)),
        tau_(normal<double>(gammas_, 6)),
        eps_(normal<double>(gammas_, 7, 0, 1e-3)),
        direct_(normal<float>(groups_, 8)) {
    frame_ = Walled<double>(7 * groups_ + 2);
    mask_.assign(index((size_ + 7) / 8), 0xaa);
    for (Walled<T>* to : {&y_, &dx_, &dresidual_}) *to = Walled<T>(size_);
    for (Walled<compute_t<T>>* to : {&dweight_, &dbias_}) *to = Walled<compute_t<T>>(gammas_);
    for (Walled<double>* to : {&dtau_, &deps_}) *to = Walled<double>(gammas_);
    has_residual_ = c.residual;
  }

  /// The route that each direction takes, or in two halves; with the gradients of gamma and beta or without.
  std::vector<Route> run(Queue& queue, bool in_halves, bool wants_weight = true) {
    ForwardArgs forward;
    describe(forward);
    forward.residual = has_residual_ ? residual_.data() : nullptr;
    forward.y = y_.data();
    forward.mask = masked() ? mask_.data() : nullptr;
    forward.state = memory_.view();
    std::vector<double> moments(index(2 * groups_));
    forward.mean = moments.data(), forward.m2 = forward.mean + groups_;
    if (in_halves)
      queue.ops().moments({forward.x, forward.dtype, forward.norm, forward.mean, forward.m2}, queue);
    else
      queue.ops().forward_local(forward, queue);
    queue.ops().forward_finish(forward, {}, queue);

    BackwardArgs backward;
    describe(backward);
    backward.dy = dy_.data();
    backward.dx = dx_.data();
    backward.dresidual = has_residual_ ? dresidual_.data() : nullptr;
    backward.mask = forward.mask;
    backward.dweight = {dweight_.data(), dtype_of<compute_t<T>>()};
    backward.dbias = {dbias_.data(), dtype_of<compute_t<T>>()};
    backward.wants_weight = wants_weight;
    if (backward.level.given())
      backward.dlevel = {dtau_.data(), DType::f64}, backward.deps = {deps_.data(), DType::f64};
    if (!backward.level.given()) backward.direct = {{direct_.data(), DType::f32}, {direct_.data(), DType::f32}};
    std::vector<double> record(index(2 * groups_) + sizeof(RecordHead) / sizeof(double));
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
    Walled<double> dweight(gammas_), dbias(gammas_);
    backend::affine_grad({x_.data(),
                          dy_.data(),
                          call.dtype,
                          call.norm,
                          call.frame.mean,
                          {call.activation, masked() ? mask_.data() : nullptr, call.frame.rstd},
                          along_of(call),
                          dweight.data(),
                          dbias.data()},
                         queue);
    for (std::int64_t i = 0; i < gammas_; ++i) {
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
  static Plan plan_of(const Layer& layer, const Case& c) {
    Plan plan = plan_for(layer, c.shape, c.order);
    if (!c.own_gammas) return plan;
    plan.affine = {1, 1, c.shape.elements(), 1};
    plan.fine = plan.norm;
    plan.to_norm = {1, plan.norm.groups()};
    plan.along = true;
    return plan;
  }
  bool masked() const { return has_residual_ && layer_.options.activation.kind != ActivationKind::identity; }

  void describe(LayerCall& call) {
    call.x = x_.data();
    call.dtype = dtype_of<T>();
    call.norm = plan_.norm, call.affine = plan_.affine, call.fine = plan_.fine;
    call.to_norm = plan_.to_norm, call.to_affine = plan_.to_affine, call.along = plan_.along;
    call.rules = memory_.rules();
    call.activation = layer_.options.activation;
    call.weight = {weight_.data(), dtype_of<compute_t<T>>(), 1, plan_.along ? 0.5 : 0};
    call.bias = {bias_.data(), DType::f64};
    if (layer_.row->tensor("tau") != nullptr)
      call.level = {tau_.data(), DType::f64}, call.learned_eps = {eps_.data(), DType::f64};
    double* const at = frame_.data();
    call.frame = {at,
                  at + groups_,
                  at + 2 * groups_,
                  nullptr,
                  nullptr,
                  at + 3 * groups_,
                  reinterpret_cast<steps::FrameScalars*>(at + 7 * groups_),
                  at + 4 * groups_};
  }

  Layer layer_;
  Plan plan_;
  LayerMemory memory_;
  std::int64_t size_, groups_, gammas_;
  bool has_residual_ = false;
  Walled<T> x_, dy_, residual_;
  Walled<compute_t<T>> weight_;
  Walled<double> bias_, tau_, eps_;
  Walled<float> direct_;
  Walled<T> y_{0}, dx_{0}, dresidual_{0};
  Walled<compute_t<T>> dweight_{0}, dbias_{0};
  Walled<double> frame_{0}, dtau_{0}, deps_{0};
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
    {"instance_norm:track=false", {5, 24, 57, 61}, Order::channels_first, false, true},
    {"layer_norm", {1100, 515}, Order::channels_first, true, true},
};

TYPED_TEST(Slabs, HaveTheBitsOfHalves) {
  for (const Case& c : cases)
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(std::string(c.layer) + " " + to_string(c.shape) + (c.order == last ? " channels last, " : ", ") +
                   std::to_string(threads) + " threads");
      Queue pool = Queue::cpu(threads);
      Call<TypeParam> slabs(c, pool), halves(c, pool);
      const bool enough = c.least_parts == 0 || threads <= c.least_parts;
      EXPECT_EQ(slabs.run(pool, false), (std::vector{Route::groups, enough ? Route::groups : Route::halves}));
      EXPECT_EQ(halves.run(pool, true), (std::vector{Route::halves, Route::halves}));
      slabs.expect_same(halves);
    }
}

// Gradients of maps of gamma and dx in one pass, slab by slab, against passes of their own over the whole tensor.
TYPED_TEST(Slabs, OfMapsHaveTheBitsOfWholeMaps) {
  for (const char* layer : {"batch_norm", "batch_norm:activation=relu"})
    for (const Order order : {Order::channels_first, last})
      for (const int threads : {1, 3}) {
        SCOPED_TRACE(std::string(layer) + (order == last ? " channels last, " : ", ") + std::to_string(threads));
        Queue pool = Queue::cpu(threads);
        const Case c{layer, {9, 24, 31, 61}, order, true, true};
        Call<TypeParam> slabs(c, pool), wholes(c, pool);
        slabs.run(pool, false);
        wholes.run(pool, false, false);
        slabs.expect_same_dx(wholes);
        slabs.expect_gamma_sums(pool);
      }
}

// Where the outermost index of the tensor is summed over, or ranks exchange, there is nothing to cut.
TEST(SlabsOfABatch, AreNone) {
  Queue queue = Queue::cpu(1);
  Call<float> call({"batch_norm", {40, 24, 31, 17}}, queue);
  EXPECT_EQ(call.run(queue, false), (std::vector{Route::halves, Route::halves}));
}

}  // namespace
}  // namespace allnorm::kernel_test
