// SPADE: a norm whose gamma and beta are maps.
#include <gtest/gtest.h>

#include "modulated_support.hpp"

namespace {

using namespace allnorm;
using namespace modulated;
using harness::error_of;

Doubles plus(Doubles values, double more) {
  for (double& v : values) v += more;
  return values;
}

template <class T>
class Maps : public testing::Test {};
using Types = testing::Types<double, float, f16, bf16>;
TYPED_TEST_SUITE(Maps, Types);

TYPED_TEST(Maps, AreItsDefinitionForwardAndBackward) {
  using T = TypeParam;
  Queue queue = backend::queue();
  for (const char* base : {"batch_norm", "instance_norm"})
    for (const char* plus_one : {"true", "false"})
      for (const Extents& shape : {Extents{6, 3}, {4, 3, 5}, {3, 5, 2, 7}, {2, 4, 3, 2, 3}, {1, 1, 1}, {0, 3, 4}})
        for (const Order order : {Order::channels_first, Order::channels_last}) {
          if (backend::takes_some && (shape.size() == 5 || (shape.size() == 4) != (std::string(plus_one) == "true")))
            continue;
          const Layer layer = Layer("spade").set("base", base).set("plus_one", plus_one);
          SCOPED_TRACE(std::string(base) + ", plus_one=" + plus_one + ", " + std::to_string(shape.size()) + "-D, " +
                       std::to_string(shape[0]) + " samples" + (order == Order::channels_last ? ", last" : ""));
          Random random(13);
          const std::size_t size = Extent3(shape).size();
          const auto draw = [&](double mean) { return rounded<T>(normals(random, size, mean)); };
          const Doubles x = draw(0.5), dy = draw(0), gamma = draw(0), beta = draw(0);
          const bool by_instance = layer.statistics().has(Axis::sample);
          const Answer want =
              solve(shape, by_instance, layer.options.eps, x, plus(gamma, layer.options.plus_one ? 1 : 0), beta, dy);
          Call<T> call(layer, shape, order, self(), queue);
          call.give("input", x);
          call.give("gamma", gamma);
          call.give("beta", beta);
          expect_near("output", call.forward(), want.y, map_bound<T>, 4);
          call.backward(dy);
          const double rstd = by_instance && Extent3(shape).S == 1 ? 1 / std::sqrt(layer.options.eps) : 5;
          expect_near("grad_input", call.gradient("input"), want.dx, map_bound<T>, 12 * rstd);
          expect_near("grad_gamma", call.gradient("gamma"), want.dgamma, map_bound<T>, 4);
          expect_near("grad_beta", call.gradient("beta"), want.dbeta, map_bound<T>, 4);
        }
}

TEST(Spade, HasTheGradientsThatCentralDifferencesHave) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  Queue queue = backend::queue();
  const Extents shape{2, 2, 3};
  for (const char* base : {"batch_norm", "instance_norm"}) {
    Random random(17);
    std::vector<Doubles> given;  // input, gamma, beta
    for (int i = 0; i < 3; ++i) given.push_back(normals(random, 12));
    const Doubles dy = normals(random, 12);
    const char* const slots[] = {"input", "gamma", "beta"};
    const auto forward = [&](Call<double>& call, const std::vector<Doubles>& with) {
      for (std::size_t i = 0; i < 3; ++i) call.give(slots[i], with[i]);
      return dot(dy, call.forward());
    };
    const Layer layer = Layer("spade").set("base", base);
    Call<double> call(layer, shape, Order::channels_first, self(), queue);
    forward(call, given);
    call.backward(dy);
    for (std::size_t slot = 0; slot < 3; ++slot)
      for (std::size_t i = 0; i < 12; ++i)
        EXPECT_NEAR(call.gradient(slots[slot])[i],
                    slope(given[slot], i,
                          [&](const Doubles& at) {
                            auto other = given;
                            other[slot] = at;
                            Call<double> again(layer, shape, Order::channels_first, self(), queue);
                            return forward(again, other);
                          }),
                    1e-7)
            << base << ", " << slots[slot];
  }
}

// Maps of one value per channel are the base with that gamma and beta: state, options and all.
TEST(Spade, IsItsBaseWhereMapsAreConstant) {
  Queue queue = backend::queue();
  const Extents shape{3, 2, 4};
  for (const std::string attributes : {":activation=relu", ":renorm=true", ":minibatches=2", ":eps_place=outside",
                                       ":window=3:compensate=false", ":training=false"}) {
    SCOPED_TRACE(attributes);
    Random random(19);
    const Doubles x = normals(random, 24), residual = normals(random, 24), dy = normals(random, 24);
    Call<double> plain(parse_layer("batch_norm" + attributes), shape, Order::channels_first, self(), queue);
    Call<double> maps(parse_layer("spade:plus_one=false" + attributes), shape, Order::channels_first, self(), queue);
    plain.give_parameter("weight", {0.5, -2}, {2});
    plain.give_parameter("bias", {0.25, 1}, {2});
    Doubles gamma(24), beta(24);
    for (std::size_t i = 0; i < 24; ++i) {
      gamma[i] = i / 4 % 2 == 0 ? 0.5 : -2;
      beta[i] = i / 4 % 2 == 0 ? 0.25 : 1;
    }
    maps.give("gamma", gamma);
    maps.give("beta", beta);
    for (Call<double>* call : {&plain, &maps}) {
      call->give("input", x);
      call->give("residual", residual);
    }
    for (int step = 0; step < 3; ++step) {
      expect_near("output", maps.forward(), plain.forward(), 1e-14, 1);
      plain.backward(dy);
      maps.backward(dy);
      expect_near("grad_input", maps.gradient("input"), plain.gradient("input"), 1e-13, 1);
      EXPECT_EQ(maps.gradient("residual"), plain.gradient("residual"));
      Doubles summed(2);
      for (std::size_t i = 0; i < 24; ++i) summed[i / 4 % 2] += maps.gradient("gamma")[i];
      expect_near("grad_gamma", summed, plain.gradient("weight"), 1e-13, 1);
      EXPECT_EQ(maps.operation().state(queue).find("running_mean")->data,
                plain.operation().state(queue).find("running_mean")->data);
    }
  }
}

TEST(Spade, OverRanksIsOneRankOnAllSamples) {
  const Extents shape{4, 2, 3};
  Random random(23);
  const Doubles x = normals(random, 24, 2), gamma = normals(random, 24), beta = normals(random, 24),
                dy = normals(random, 24);
  const Answer want = solve(shape, false, 1e-5, x, plus(gamma, 1), beta, dy);
  harness::run(2, [&](const harness::World& world, Queue& queue) {
    const auto part = [&](const Doubles& all) {  // one sample, and three
      return world->rank() == 0 ? Doubles(all.begin(), all.begin() + 6) : Doubles(all.begin() + 6, all.end());
    };
    Call<double> call(parse_layer("spade:sync=world"), {world->rank() == 0 ? 1 : 3, 2, 3}, Order::channels_first, world,
                      queue);
    call.give("input", part(x));
    call.give("gamma", part(gamma));
    call.give("beta", part(beta));
    expect_near("output", call.forward(), part(want.y), 1e-12, 1);
    call.backward(part(dy));
    expect_near("grad_input", call.gradient("input"), part(want.dx), 1e-12, 1);
    expect_near("grad_gamma", call.gradient("gamma"), part(want.dgamma), 1e-12, 1);
  });
}

TEST(Spade, RanksOnAnotherBaseAreTold) {
  std::vector<std::string> told(2);
  try {
    harness::run(2, [&](const harness::World& world, Queue& queue) {
      Call<double> call(parse_layer(world->rank() == 0 ? "spade:sync=world" : "spade:sync=world:base=instance_norm"),
                        {1, 1, 2}, Order::channels_first, world, queue);
      for (const char* slot : {"input", "gamma", "beta"}) call.give(slot, {1, 2});
      told[static_cast<std::size_t>(world->rank())] = error_of([&] { call.forward(); });
    });
  } catch (const Error&) {
  }
  for (const std::string& line : told)
    EXPECT_NE(line.find("base is instance_norm, must be batch_norm as on rank 0"), std::string::npos) << line;
}

TEST(Spade, SaysWhatIsWrong) {
  Queue queue = backend::queue();
  const auto told = [&](const auto& more) {
    return error_of([&] {
      Call<double> call(Layer("spade"), {2, 1, 2}, Order::channels_first, self(), queue);
      call.give("input", {1, 2, 3, 4});
      more(call);
      call.forward();
    });
  };
  EXPECT_EQ(told([](Call<double>&) {}), "invalid argument: gamma is missing, must be given");
  EXPECT_EQ(told([](Call<double>& call) {
              call.give("gamma", {1, 2, 3, 4});
            }),
            "invalid argument: beta is missing, must be given");
  EXPECT_EQ(told([](Call<double>& call) {
              call.give("gamma", {1, 2}, {2, 1, 1});
            }),
            "invalid input: gamma has shape (2,1,1), must have (2,1,2) as input");
  EXPECT_EQ(told([](Call<double>& call) {
              call.give("gamma", {1, 2, 3, 4});
              call.give("beta", {1, 2, 3, 4});
              call.give_parameter("weight", {1}, {1});
            }),
            "invalid argument: weight is given, must not be for spade");
  EXPECT_EQ(error_of([] { parse_layer("spade:base=instance_norm:renorm=true").check(); }),
            "invalid argument: attribute renorm is true, must be false where base is instance_norm");
  EXPECT_EQ(error_of([] { parse_layer("spade:base=instance_norm:training=false").check(); }),
            "invalid argument: attribute training is false, must be true where base is instance_norm");
}

}  // namespace
