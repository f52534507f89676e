// What forward and backward of norms whose groups fit on chip share: how a group lies in memory, and the room that a
// team of threads has for it.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "kernels/cuda/coefficients.cuh"
#include "kernels/cuda/halves.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/team.cuh"
#include "kernels/cuda/vectors.cuh"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::cuda::groupwise {

constexpr int loads = 4;                        // vectors that a thread has under way
constexpr int most_threads = 512;               // of a team
constexpr std::int64_t few_bytes = 32 << 10;    // a group that is no burden for one multiprocessor
constexpr std::size_t static_shared = 1 << 10;  // room for what team_sum keeps

constexpr std::int64_t round_up(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

/// How the values of a group lie in memory: `runs` runs of `run` adjacent values, `stride` apart; and which channel of
/// the group, of `channels` in all, a value belongs to: `adjacent` values of a run after each other share one, and so
/// gamma and coefficients. Where gamma is read along a group is one channel.
struct Groups {
  std::int64_t count = 0, keep = 1, stride = 0;
  int size = 0, runs = 1, run = 0, channels = 1, adjacent = 1;
  Divisor by_run{}, by_adjacent{};

  __device__ std::int64_t base(std::int64_t g) const { return g / keep * runs * stride + g % keep * run; }
  /// Of value i of a group.
  __device__ std::int64_t offset(int i) const {
    if (runs == 1) return i;
    const int row = over(i, by_run);
    return row * stride + (i - row * run);
  }
  /// Value s of channel j.
  __device__ int value_of(int j, int s) const {
    if (runs == 1) return j * adjacent + s;
    if (adjacent == 1) return s * run + j;
    const int row = over(s, by_adjacent);
    return row * run + j * adjacent + (s - row * adjacent);
  }
  /// Whether n values from a multiple of n on are one channel's.
  __device__ bool in_channels(int n) const { return adjacent % n == 0; }
  __device__ static int over(int i, const Divisor& divisor) {
    return static_cast<int>(divisor(static_cast<std::uint32_t>(i)));
  }
  __device__ std::int64_t fine(std::int64_t g, int j) const { return g * channels + j; }
};

template <class Args>
Groups groups_of(const Args& args) {
  const Partition& p = args.norm;
  Groups groups;
  groups.count = p.groups();
  groups.keep = p.keep1;
  groups.stride = p.keep1 * p.reduce1;
  groups.size = static_cast<int>(p.group_size());
  groups.runs = static_cast<int>(p.reduce0);
  groups.run = static_cast<int>(p.reduce1);
  groups.channels = static_cast<int>(args.fine.groups() / p.groups());
  groups.adjacent = static_cast<int>(args.fine.reduce1);
  groups.by_run = Divisor(groups.run);
  groups.by_adjacent = Divisor(groups.adjacent);
  return groups;
}

/// Walks along the channels of adjacent values.
struct ChannelWalk {
  int channel, place, adjacent;
  __device__ ChannelWalk(const Groups& groups, int i) {
    const int in_run = groups.runs == 1 ? i : i - Groups::over(i, groups.by_run) * groups.run;
    adjacent = groups.adjacent;
    channel = Groups::over(in_run, groups.by_adjacent);
    place = in_run - channel * adjacent;
  }
  __device__ void step() {
    if (++place < adjacent) return;
    place = 0;
    ++channel;
  }
};

/// The coefficients of a group's channels: in shared memory, or those of its one channel with every thread.
template <class K, bool single>
class ChannelTable {
 public:
  static constexpr std::size_t bytes = single ? 0 : sizeof(K);  // per channel

  __device__ explicit ChannelTable(unsigned char* shared) : shared_(reinterpret_cast<K*>(shared)) {}
  /// of_channel(j) gives those of channel j. All threads of the team call it together, and none may still read.
  template <class F>
  __device__ __forceinline__ void fill(const Groups& groups, const TeamShape& team, const F& of_channel) {
    if constexpr (single) {
      own_ = of_channel(0);
    } else {
      for (int j = team.lane(); j < groups.channels; j += team.threads) shared_[j] = of_channel(j);
      team_sync(team);
    }
  }
  __device__ __forceinline__ const K& operator[](int channel) const {
    if constexpr (single) return own_;
    return shared_[channel];
  }

 private:
  K* shared_;
  K own_{};
};

/// Calls f(k), where k(e), asked for in order, are the coefficients of value e of n from value i on: read once where
/// all have one channel.
template <int n, class K, bool single, class F>
__device__ __forceinline__ void with_channels(const Groups& groups, const ChannelTable<K, single>& table, int i,
                                              const F& f) {
  if constexpr (single) return f([&](int) { return table[0]; });
  ChannelWalk walk(groups, i);
  if (groups.in_channels(n)) {
    const K k = table[walk.channel];
    return f([&](int) { return k; });
  }
  f([&](int) {
    const K k = table[walk.channel];
    walk.step();
    return k;
  });
}

/// Bytes of shared memory per team, and where in it things are. The values first, as they are in memory.
struct Room {
  std::int64_t values = 0, table = 0, sums = 0, bytes = 0;

  Room(const Groups& groups, std::size_t value_bytes, int tensors, std::size_t coefficient_bytes, int sum_slots) {
    values = round_up(static_cast<std::int64_t>(value_bytes) * groups.size);
    table = tensors * values;
    sums = round_up(table + static_cast<std::int64_t>(coefficient_bytes) * groups.channels);
    bytes = round_up(sums + 2 * static_cast<std::int64_t>(sizeof(double)) * sum_slots);
  }
};

/// Vector v of what is kept, in whole words: a copy of its bytes would be a load for each.
template <class T, int n>
__device__ __forceinline__ Vector<T, n> at_place(const Vector<T, n>* kept, int v) {
  return read_vector<n>(reinterpret_cast<const T*>(kept + v));
}

// ---- on the host ---------------------------------------------------------------------------------------------------

/// Whether a group of `tensors` tensors can be kept on chip, and whether there are groups enough to fill the device.
template <class Args>
bool fits(const Args& args, int tensors, const cudaDeviceProp& device) {
  const Partition& p = args.norm;
  if (args.record != nullptr || p.elements() == 0) return false;
  const auto value_bytes = static_cast<std::int64_t>(size_of(args.dtype));
  const auto most = static_cast<std::int64_t>(device.sharedMemPerBlockOptin - static_shared);
  if (p.group_size() > most / (tensors * value_bytes)) return false;
  // every fine group in order of its group, and whole channels in a run
  const std::int64_t channels = args.fine.groups() / p.groups();
  if (args.to_norm.divide != channels || channels * args.fine.reduce1 != p.reduce1) return false;
  if (p.reduce0 > 1 && p.reduce1 * value_bytes < 16) return false;  // runs too short to be read apart
  const std::int64_t bytes = tensors * value_bytes * p.group_size();
  return bytes <= few_bytes || 2 * p.groups() >= device.multiProcessorCount;
}

/// Calls f with the vector's width for these tensors, or 1, as a constant, and the call's gammas.
template <class T, class Args, class F>
void visit_width(const Args& args, std::initializer_list<const void*> tensors, const F& f) {
  bool aligned = args.norm.reduce1 % vector_width<T> == 0;
  for (const void* p : tensors) aligned = aligned && is_vector_aligned(p);
  if (args.along) aligned = aligned && AlongGammas<true>(along_of(args), args.norm, vector_width<T>).whole;
  const auto with = [&](auto width) {
    visit_gammas<true>(along_of(args), floor_of(args), args.norm, args.fine, width(),
                       [&](const auto& gammas) { f(width, gammas); });
  };
  if (aligned)
    with(std::integral_constant<int, vector_width<T>>{});
  else
    with(std::integral_constant<int, 1>{});
}

inline std::int64_t blocks_of(const Groups& groups, const TeamShape& team) {
  return (groups.count + team.teams - 1) / team.teams;
}

/// Fewer teams where those of a block would need much shared memory.
inline void share_room(TeamShape& team, const Room& room) {
  while (team.teams > 1 && team.teams * room.bytes > few_bytes) team.teams /= 2;
}

}  // namespace allnorm::cuda::groupwise
