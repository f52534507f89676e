// `allnorm apply`: what is written, and how all ranks write it or none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "allnorm/operation.hpp"
#include "launch/apply.hpp"
#include "launch/apply_tensors.hpp"
#include "launch/files/npy.hpp"
#include "launch/files/safetensors.hpp"

namespace allnorm::launch {

/// A result in memory, before anything is written.
struct NamedArray {
  std::string name;  ///< of the output
  std::int64_t step = 0;
  NpyArray array;
};
/// Runs forward, and backward where grad_output is given: the arrays that cli.md promises of a step, in the order of
/// the row's outputs.
std::vector<NamedArray> run_step(const ApplyPlan& plan, const StepTensors& tensors, Operation& operation, Rank& rank,
                                 std::int64_t step);

/// A layer's state after the last call, and why it could not be loaded again, if so: values that are not finite.
struct SavedState {
  State state{};
  std::string wrong{};
};

/// Gives every rank's files their names, or none of them. The state is written where the plan and the rank ask for it;
/// on no rank where that of one is wrong: a line says so, and older files stay. Collective over rank.world.
void write_results(const ApplyPlan& plan, Rank& rank, const std::vector<NamedArray>& results, const SavedState& saved);

/// A run's state in and out of files. A state that is for another number of `ranks` is refused unless its window and
/// batch are to be dropped.
State read_state(const std::string& path, int ranks, bool drop_window);
TensorFile to_file(const State& state, int ranks);

}  // namespace allnorm::launch
