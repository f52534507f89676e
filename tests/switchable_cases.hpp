// Calls of Switchable Normalization that are compared with its definition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "launch/reference/switchable.hpp"
#include "operation_cases.hpp"

namespace switchable_cases {

using operation_cases::Arrays;
using operation_cases::Subject;
using reference::Array;
using reference::Doubles;
using World = std::shared_ptr<allnorm::Communicator>;

inline constexpr allnorm::DType types[] = {allnorm::DType::f64, allnorm::DType::f32, allnorm::DType::f16,
                                           allnorm::DType::bf16};

struct Options {
  double eps = 1e-3, momentum = 0.3;
  bool training = true, unbiased = false;
};
using Parameters = reference::SwitchableParameters;
using Expected = reference::Switchable;

/// The definition over parts (N, C, space...) that may have other samples and other space.
Expected loops(const std::vector<Array>& x, const std::vector<Array>& dy, const Parameters& p, const Options& o);

allnorm::Layer layer_of(const Options& o, const std::string& more = "");
Parameters parameters(cases::Random& random, std::int64_t C);
Arrays tensors(const Array& x, const Array& dy, const Parameters& p);

/// What one call of one part made; `terms`: values of the whole; `far`: what is lost far from 0, of the largest.
void expect_equal(Arrays& got, const Expected& want, std::size_t part, allnorm::DType dtype, double far = 0,
                  double scale = 1, std::size_t terms = 0);
void expect_running(Subject& subject, const Expected& want, double bound, double scale = 1);

/// A batch whose samples ranks have, of other numbers and other sizes; with running statistics before the call.
struct Batch {
  Batch(const std::vector<cases::Extents>& shapes, const Options& options, allnorm::DType type);
  /// Two calls of one object, each of rank `world->rank()`: a GPU's first exchange goes through the host, later ones do
  /// not.
  void expect_calls(const World& world) const;

  Options o;
  allnorm::DType dtype;
  Parameters p;
  std::vector<Array> x, dy;
  Expected want;
  std::size_t values = 0;
};

/// Samples (2, 3, 6) whose space ranks have parts of: `ratio` from 0 in units of the deviation, times `scale`.
struct Samples {
  Samples(std::vector<std::int64_t> sizes, const Options& options, allnorm::DType type, double ratio = 0,
          double scale = 1);
  /// Two calls, as above: returns what the second one made, with its shares of the parameters' gradients.
  Arrays expect_calls(const World& world) const;
  void expect_sums(const std::vector<Arrays>& shares) const;

  std::vector<std::int64_t> parts;
  Options o;
  allnorm::DType dtype;
  double far, scale;
  Parameters p;
  std::vector<Array> x, dy, y, dx;  // of parts
  Expected want;                    // of the whole
};

}  // namespace switchable_cases
