// A whole layer against the oracle: the same body for one rank, threads and MPI.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/norm.hpp"
#include "cases.hpp"
#include "harness.hpp"
#include "launch/reference/reference.hpp"

namespace norm_cases {

/// A layer of the batch_norm family, and the calls that it is put through.
struct Composition {
  std::string layer = "batch_norm";
  std::vector<std::pair<std::string, std::string>> attributes{};
  cases::Extents space{3, 4};  ///< of the layer's input
  std::int64_t channels = 6;
  int steps = 5;
  bool residual = false;
  allnorm::Order order = allnorm::Order::channels_first;
  allnorm::DType dtype = allnorm::DType::f64;  ///< of the activations; parameters are f32 then, f64 for f64
  cases::Extents kernel{3, 3};                 ///< of the convolution before it, where the layer compensates
  std::uint64_t seed = 1;
  int empty_step = -1;           ///< a step in which no rank has a sample
  int short_batch_step = -1;     ///< begin_batch() is called before this step
  double mean = 0.7, std = 1.3;  ///< of the input where it is not a convolution's
  int resume_step = -1;          ///< before this step the layer is replaced by one that loads its saved state
};

/// What a failing test prints.
void PrintTo(const Composition& c, std::ostream* out);

/// The layer, set up.
allnorm::Layer layer_of(const Composition& c);

/// What one rank computed in every step, to compare bits.
using Trace = std::vector<reference::Doubles>;

/// Runs the layer on this rank's part of random uneven batches (empty ranks included) with sync=world and checks
/// output, gradients, mean, var, r, d and the running statistics of every step against the oracle on all ranks' data,
/// relative to the largest value: to 1e-12 in f64, to a few roundings of the type otherwise. Returns what it computed.
Trace check(const Composition& c, const harness::World& world, allnorm::Queue& queue);

/// Compositions that between them meet every option of the family.
std::vector<std::pair<std::string, Composition>> compositions();

/// An array in the order of a layout, and back.
reference::Doubles to_order(const reference::Array& array, allnorm::Order order);
reference::Array from_order(const reference::Doubles& values, const std::vector<std::int64_t>& shape,
                            allnorm::Order order);

}  // namespace norm_cases
