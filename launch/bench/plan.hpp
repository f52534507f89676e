// `allnorm bench`: what the command line asks for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <boost/program_options/options_description.hpp>

#include "allnorm/catalogue.hpp"
#include "allnorm/tensor.hpp"
#include "launch/command.hpp"
#include "launch/ranks.hpp"

namespace allnorm::launch::bench {

/// One line of the table: a layer on an input of `shape` per rank, which a model has `count` times.
struct Case {
  Layer layer;
  std::string text{};  ///< the layer as it was written
  Shape shape{};       ///< (N, C, space...)
  std::int64_t count = 1;
};

struct Plan {
  RankOptions ranks{};
  DType dtype = DType::f32;
  Order order = Order::channels_first;
  std::int64_t iterations = 20, warm_up = 5;
  std::optional<std::int64_t> rotate{};  ///< sets of data in turn; not given: 1, on a GPU what is beyond its L2 cache
  std::optional<bool> check{};           ///< not given: where a rank has at most `small` values
  std::string model{};                   ///< its name; empty: the shapes were given
  std::string json{}, csv{}, compare{};
  double tolerance = 0.25;
  std::vector<Case> cases{};

  static constexpr std::int64_t small = 1 << 20;
  bool checks(const Case& of) const { return check ? *check : of.shape.elements() <= small; }
};

/// What is timed, beside the options that say how, and the ranks.
boost::program_options::options_description describe_bench();
/// Reads the options and checks all that needs no rank. Throws invalid_argument, invalid_input (a model's file) and
/// unsupported.
Plan read_plan(const Arguments& words);

}  // namespace allnorm::launch::bench
