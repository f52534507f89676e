// SPADE: a norm whose gamma and beta are maps.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "backend.hpp"
#include "harness.hpp"
#include "modulated_support.hpp"

namespace maps_test {
namespace {

using namespace modulated;
using harness::error_of;

Doubles plus(Doubles values, double more) {
  for (double& v : values) v += more;
  return values;
}

Arrays tensors(Random& random, const Extents& shape, DType dtype, double mean = 0.5) {
  return {{"input", drawn(random, shape, dtype, mean)},
          {"grad_output", drawn(random, shape, dtype)},
          {"gamma", drawn(random, shape, dtype)},
          {"beta", drawn(random, shape, dtype)}};
}

Answer solve(const Layer& layer, const Arrays& t) {
  return modulated::solve(t.at("input").shape, layer.statistics().has(Axis::sample), layer.options.eps, t.at("input").v,
                          plus(t.at("gamma").v, layer.options.plus_one ? 1 : 0), t.at("beta").v, t.at("grad_output").v);
}

TEST(Spade, IsItsDefinitionForwardAndBackward) {
  const std::vector<Extents> shapes = {{6, 3}, {4, 3, 5}, {3, 5, 2, 7}, {2, 4, 3, 2, 3}, {1, 1, 1}, {0, 3, 4}};
  for_each_kind(shapes, [](DType dtype, Order order, const Extents& shape) {
    for (const char* base : {"batch_norm", "instance_norm"})
      for (const char* plus_one : {"true", "false"}) {
        if (backend::takes_some && (shape.size() == 5 || (shape.size() == 4) != (std::string(plus_one) == "true")))
          continue;
        SCOPED_TRACE(std::string(base) + ", plus_one=" + plus_one);
        const Layer layer = Layer("spade").set("base", base).set("plus_one", plus_one);
        Random random(13);
        const Arrays given = tensors(random, shape, dtype);
        const Answer want = solve(layer, given);
        Arrays got = Subject(layer, shape[1], dtype, order)(given);
        const double map = tolerance_of(dtype);
        expect_near("output", got["output"].v, want.y, map, 4);
        const bool lone = layer.statistics().has(Axis::sample) && Extent3(shape).S == 1;
        const double rstd = lone ? 1 / std::sqrt(layer.options.eps) : 5;
        expect_near("grad_input", got["grad_input"].v, want.dx, map, 12 * rstd);
        expect_near("grad_gamma", got["grad_gamma"].v, want.dgamma, map, 4);
        expect_near("grad_beta", got["grad_beta"].v, want.dbeta, map, 4);
      }
  });
}

TEST(Spade, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  for (const char* base : {"batch_norm", "instance_norm"}) {
    Random random(17);
    expect_gradients([&] { return Subject(Layer("spade").set("base", base), 2); },
                     tensors(random, {2, 2, 6}, DType::f64));
  }
}

// Maps of one value per channel are the base with that gamma and beta: state, options and all.
TEST(Spade, IsItsBaseWhereMapsAreConstant) {
  const Extents shape{3, 2, 4};
  for (const std::string attributes : {":activation=relu", ":renorm=true", ":minibatches=2", ":eps_place=outside",
                                       ":window=3:compensate=false", ":training=false"}) {
    SCOPED_TRACE(attributes);
    Random random(19);
    const Arrays both{{"input", cases::normal(random, shape)},
                      {"residual", cases::normal(random, shape)},
                      {"grad_output", cases::normal(random, shape)}};
    Arrays of_base = both, of_maps = both;
    of_base["weight"] = {{2}, {0.5, -2}};
    of_base["bias"] = {{2}, {0.25, 1}};
    for (const auto& [map, value] : {std::pair{"gamma", "weight"}, {"beta", "bias"}}) {
      of_maps[map] = reference::zeros(shape);
      for (std::size_t i = 0; i < 24; ++i) of_maps[map].v[i] = of_base[value].v[i / 4 % 2];
    }
    Subject plain(parse_layer("batch_norm" + attributes), 2), maps(parse_layer("spade:plus_one=false" + attributes), 2);
    for (int step = 0; step < 3; ++step) {
      Arrays want = plain(of_base), got = maps(of_maps);
      expect_near("output", got["output"].v, want["output"].v, 1e-14, 1);
      expect_near("grad_input", got["grad_input"].v, want["grad_input"].v, 1e-13, 1);
      EXPECT_EQ(got["grad_residual"].v, want["grad_residual"].v);
      Doubles summed(2);
      for (std::size_t i = 0; i < 24; ++i) summed[i / 4 % 2] += got["grad_gamma"].v[i];
      expect_near("grad_gamma", summed, want["grad_weight"].v, 1e-13, 1);
      EXPECT_EQ(maps.state("running_mean"), plain.state("running_mean"));
    }
  }
}

TEST(Spade, OverRanksIsOneRankOnAllSamples) {
  Random random(23);
  const Arrays whole = tensors(random, {4, 2, 3}, DType::f64, 2);
  const Layer layer = parse_layer("spade:sync=world");
  const Answer want = solve(layer, whole);
  harness::run(2, [&](const harness::World& world, Queue&) {
    const auto own = [&](const Array& all) {  // one sample, and three
      return world->rank() == 0 ? part_of(all, 0, 0, 1) : part_of(all, 0, 1, 4);
    };
    Arrays given;
    for (const auto& [name, values] : whole) given[name] = own(values);
    Arrays got = Subject(layer, 2, DType::f64, Order::channels_first, world)(given);
    const Extents& shape = whole.at("input").shape;
    expect_near("output", got["output"].v, own({shape, want.y}).v, 1e-12, 1);
    expect_near("grad_input", got["grad_input"].v, own({shape, want.dx}).v, 1e-12, 1);
    expect_near("grad_gamma", got["grad_gamma"].v, own({shape, want.dgamma}).v, 1e-12, 1);
  });
}

TEST(Spade, RanksOnAnotherBaseAreTold) {
  std::vector<std::string> told(2);
  try {
    harness::run(2, [&](const harness::World& world, Queue&) {
      const Array two{{1, 1, 2}, {1, 2}};
      Subject subject(parse_layer(world->rank() == 0 ? "spade:sync=world" : "spade:sync=world:base=instance_norm"), 1,
                      DType::f64, Order::channels_first, world);
      told[static_cast<std::size_t>(world->rank())] = error_of([&] {
        subject({{"input", two}, {"gamma", two}, {"beta", two}});
      });
    });
  } catch (const Error&) {
  }
  for (const std::string& line : told)
    EXPECT_NE(line.find("base is instance_norm, must be batch_norm as on rank 0"), std::string::npos) << line;
}

TEST(Spade, SaysWhatIsWrong) {
  const Array values{{2, 1, 2}, {1, 2, 3, 4}};
  const auto told = [&](Arrays more) {
    more["input"] = values;
    return error_of([&] { Subject{Layer("spade")}(more); });
  };
  EXPECT_EQ(told({}), "invalid argument: gamma is missing, must be given");
  EXPECT_EQ(told({{"gamma", values}}), "invalid argument: beta is missing, must be given");
  EXPECT_EQ(told({{"gamma", {{2, 1, 1}, {1, 2}}}}),
            "invalid input: gamma has shape (2,1,1), must have (2,1,2) as input");
  EXPECT_EQ(told({{"gamma", values}, {"beta", values}, {"weight", {{1}, {1}}}}),
            "invalid argument: weight is given, must not be for spade");
  EXPECT_EQ(error_of([] { parse_layer("spade:base=instance_norm:renorm=true").check(); }),
            "invalid argument: attribute renorm is true, must be false where base is instance_norm");
  EXPECT_EQ(error_of([] { parse_layer("spade:base=instance_norm:training=false").check(); }),
            "invalid argument: attribute training is false, must be true where base is instance_norm");
}

}  // namespace
}  // namespace maps_test
