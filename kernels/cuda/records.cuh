// How the kernels of the first halves write a rank's record: the payload group by group, and the head by one block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sums.cuh"
#include "kernels/heads.hpp"
#include "kernels/ops.hpp"

namespace allnorm::cuda {

/// The sum of 64-bit words over a block, in thread 0. `room`: one per warp of shared memory.
__device__ inline std::uint64_t block_sum(std::uint64_t value, unsigned long long* room) {
  const auto thread = static_cast<int>(threadIdx.x);
  auto sum = warp_sum(static_cast<unsigned long long>(value));
  if (thread % warp_threads == 0) room[thread / warp_threads] = sum;
  __syncthreads();
  if (thread == 0)
    for (int warp = 1; warp < block_threads / warp_threads; ++warp) sum += room[warp];
  __syncthreads();
  return sum;
}

struct ForwardRecord {
  std::byte* data = nullptr;  // null: none is made
  Header header{};
  Rules rules{};
  LayerState state{};
  std::int64_t groups = 0, entries = 0, count = 0;  // count: values per group
  const std::uint64_t* weights = nullptr;           // (2), optional
  Reporter reporter{};

  ForwardRecord() = default;
  explicit ForwardRecord(const ForwardArgs& args)
      : data(args.record),
        header(args.header),
        rules(args.rules),
        state(args.state),
        groups(args.norm.groups()),
        entries(args.entries),
        count(args.norm.group_size()),
        weights(args.weights),
        reporter(args.reporter) {}

  /// By all threads of a block.
  __device__ void write_head() const {
    auto* room = dynamic_shared<unsigned long long>();
    steps::Hashes hashes;
    if (rules.persists) {
      if (threadIdx.x == 0) hashes = steps::hashes_of(state);
      for (std::int64_t c = threadIdx.x; c < state.channels; c += block_threads) hashes.add(steps::hashes_of(state, c));
      hashes = {block_sum(hashes.running, room), block_sum(hashes.history, room)};
    }
    if (threadIdx.x != 0) return;
    auto& head = *reinterpret_cast<RecordHead*>(data);
    head.header = header;
    head.flags = 0;
    head.count = static_cast<std::uint64_t>(steps::Layout{groups}.size(entries));
    steps::write_header(rules, state, hashes, head.header);
    if (weights != nullptr) {
      head.header.set(Field::weight_hash, weights[0]);
      if (weights[1] != 0) head.flags |= flag_weights_changed;
    }
    steps::payload_of(data)[0] = static_cast<double>(count);
    steps::report_started(reporter);
  }
};

struct BackwardRecord {
  std::byte* data = nullptr;
  Header header{};
  const steps::FrameScalars* scalars = nullptr;
  std::int64_t groups = 0;
  Reporter reporter{};

  BackwardRecord() = default;
  explicit BackwardRecord(const BackwardArgs& args)
      : data(args.record),
        header(args.header),
        scalars(args.frame.scalars),
        groups(args.norm.groups()),
        reporter(args.reporter) {}

  /// By all threads of a block.
  __device__ void write_head() const {
    if (threadIdx.x != 0) return;
    auto& head = *reinterpret_cast<RecordHead*>(data);
    head.header = header;
    head.flags = 0;
    head.count = static_cast<std::uint64_t>(2 * groups);
    head.header.set(Field::call, static_cast<std::uint64_t>(scalars->call));
    steps::report_started(reporter);
  }
};

}  // namespace allnorm::cuda
