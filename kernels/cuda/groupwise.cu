// Forward and backward of norms whose groups fit on chip, for a lone rank: layer, group and instance norm. A team of
// threads keeps a whole group in shared memory, so that x (and dy) cross the memory bus once. The path through
// forward_local and forward_finish is the slow twin that serves every other call.
#include <initializer_list>
#include <type_traits>

#include "kernels/cuda/coefficients.cuh"
#include "kernels/cuda/groupwise.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row_steps.cuh"
#include "kernels/cuda/team.cuh"
#include "kernels/cuda/vectors.cuh"
#include "src/cuda/queue.hpp"

namespace allnorm::cuda {
namespace {

constexpr int loads = 4;                        // vectors that a thread has under way
constexpr int most_threads = 512;               // of a team
constexpr std::int64_t few_bytes = 32 << 10;    // a group that is no burden for one multiprocessor
constexpr std::size_t static_shared = 1 << 10;  // room for what team_sum keeps
constexpr int values_per_sum = 16;              // that are added in the compute type

constexpr std::int64_t round_up(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

/// How the values of a group lie in memory: `runs` runs of `run` adjacent values, `stride` apart; and which channel of
/// the group, of `channels` in all, a value belongs to: `adjacent` values of a run after each other share one. Rows
/// have a parameter per value instead and no channels.
struct Groups {
  std::int64_t count = 0, keep = 1, stride = 0;
  int size = 0, runs = 1, run = 0, channels = 0, adjacent = 1;
  Coarsening to_affine{};

  __device__ std::int64_t base(std::int64_t g) const { return g / keep * runs * stride + g % keep * run; }
  /// Of value i of a group.
  __device__ std::int64_t offset(int i) const { return runs == 1 ? i : i / run * stride + i % run; }
  /// Value s of channel j.
  __device__ int value_of(int j, int s) const {
    if (runs == 1) return j * adjacent + s;
    return adjacent == 1 ? s * run + j : s / adjacent * run + j * adjacent + s % adjacent;
  }
  __device__ std::int64_t parameter(std::int64_t g, int j) const { return to_affine(g * channels + j); }
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
  if (args.rows) return groups;
  groups.channels = static_cast<int>(args.fine.groups() / p.groups());
  groups.adjacent = static_cast<int>(args.fine.reduce1);
  groups.to_affine = args.to_affine;
  return groups;
}

/// Walks along the channels of adjacent values.
struct ChannelWalk {
  int channel, place, adjacent;
  __device__ ChannelWalk(const Groups& groups, int i) {
    const int in_run = i % groups.run;
    adjacent = groups.adjacent;
    channel = in_run / adjacent;
    place = in_run % adjacent;
  }
  __device__ void step() {
    if (++place < adjacent) return;
    place = 0;
    ++channel;
  }
};

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

/// All threads of a team have come here, and see what the others wrote.
__device__ inline void team_sync(const TeamShape& team) {
  if (team.threads == warp_threads)
    __syncwarp();
  else
    __syncthreads();
}

/// Vector v of what is kept, in whole words: a copy of its bytes would be a load for each.
template <class T, int n>
__device__ __forceinline__ Vector<T, n> at_place(const Vector<T, n>* kept, int v) {
  return read_vector<n>(reinterpret_cast<const T*>(kept + v));
}

// ---- forward -------------------------------------------------------------------------------------------------------

template <class T>
Room forward_room(const Groups& groups) {
  return {groups, sizeof(T), 1, sizeof(Affine<compute_t<T>>), 0};
}

template <class T, int width, bool by_rows>
__global__ void __launch_bounds__(most_threads)
    groupwise_forward_kernel(const ForwardArgs args, const Groups groups, const Room room, const TeamShape team,
                             const Below<compute_t<T>> below) {
  using C = compute_t<T>;
  const std::int64_t g = team.place();
  if (g >= groups.count) return;  // a whole warp: a block that is one team always has a group
  auto* own = dynamic_shared<unsigned char>() + threadIdx.x / static_cast<unsigned>(team.threads) * room.bytes;
  auto* kept = reinterpret_cast<Vector<T, width>*>(own);
  auto* table = reinterpret_cast<Affine<C>*>(own + room.table);  // (channels)
  const T* x = static_cast<const T*>(args.x) + groups.base(g);
  const int lane = team.lane(), vectors = groups.size / width;

  // the mean, about the first value
  const C pivot = widen(x[0]);
  double sum = 0;
  for (int begin = lane; begin < vectors; begin += loads * team.threads) {
    Vector<T, width> of_x[loads];
    for (int k = 0; k < loads; ++k)
      if (const int v = begin + k * team.threads; v < vectors)
        of_x[k] = read_vector<width>(x + groups.offset(v * width), Hint::last);
    for (int k = 0; k < loads; ++k) {
      const int v = begin + k * team.threads;
      if (v >= vectors) break;
      kept[v] = of_x[k];
      C value[width], some = 0;
      unpack(of_x[k], value);
      for (int e = 0; e < width; ++e) some += value[e] - pivot;
      sum += static_cast<double>(some);
    }
  }
  const double count = groups.size, mean = static_cast<double>(pivot) + team_sum(sum, team) / count;

  // the sum of squares about the mean, as it is in C, and from there
  const C center = static_cast<C>(mean);
  double squares = 0;
  for (int v = lane; v < vectors; v += team.threads) {
    C value[width], some = 0;
    unpack(at_place(kept, v), value);
    for (int e = 0; e < width; ++e) some = fma(value[e] - center, value[e] - center, some);
    squares += static_cast<double>(some);
  }
  const double off = mean - static_cast<double>(center), m2 = team_sum(squares, team) - count * off * off;
  const auto frame = steps::frame_of(args.rules, args.state, Turn{}, g, steps::moments_of(count, mean, m2 < 0 ? 0 : m2),
                                     rows::NoLane{}, false);
  if (lane == 0) args.frame.set(g, frame);
  if (lane == 0 && g == 0) rows::advance_call(args, count, false);

  T* y = static_cast<T*>(args.y) + groups.base(g);
  if constexpr (by_rows) {
    const auto a = affine<C>(frame.mean, frame.rstd, 0);
    for (int v = lane; v < vectors; v += team.threads) {
      C value[width], weight[width], bias[width];
      unpack(at_place(kept, v), value);
      rows::load_parameter<width>(args.weight, v * width, weight);
      rows::load_parameter<width>(args.bias, v * width, bias);
      for (int e = 0; e < width; ++e)
        value[e] = fma(affine_of(value[e] - a.center, a.scale, a.shift), weight[e], bias[e]);
      write_vector(y + v * width, pack<T>(value));
    }
  } else {
    for (int j = lane; j < groups.channels; j += team.threads) {
      const std::int64_t p = groups.parameter(g, j);
      const auto k = formulas::apply(frame.rstd, frame.correction, args.weight[p], args.bias[p]);
      table[j] = affine<C>(frame.mean, k.scale, k.shift);
    }
    team_sync(team);
    const T* residual = args.residual == nullptr ? nullptr : static_cast<const T*>(args.residual) + groups.base(g);
    for (int v = lane; v < vectors; v += team.threads) {
      const std::int64_t at = groups.offset(v * width);
      C value[width], other[width] = {};
      unpack(at_place(kept, v), value);
      if (residual != nullptr) unpack(read_vector<width>(residual + at, Hint::last), other);
      ChannelWalk walk(groups, v * width);
      for (int e = 0; e < width; ++e, walk.step()) {
        const Affine<C> a = table[walk.channel];
        C z = affine_of(value[e] - a.center, a.scale, a.shift);
        if (residual != nullptr) z += other[e];
        value[e] = below.activate(z);
      }
      write_vector(y + at, pack<T>(value));
    }
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

/// How a team's warps sum channels. Where channels are planes a warp takes one, or a slice of it if there are more
/// warps than channels. Where they are columns the lanes of a warp take neighbouring ones, in as many rows as they
/// cover.
struct ChannelSums {
  int columns = 1, rows = 1, blocks = 1, slices = 1;  // of a warp's lanes; blocks of columns; slices of the values

  ALLNORM_HOST_DEVICE ChannelSums(const Groups& groups, const TeamShape& team) {
    if (groups.channels == 0) return;
    const int warps = team.threads / warp_threads;
    if (groups.adjacent == 1 && groups.channels > 1) {
      columns = groups.channels < warp_threads ? groups.channels : warp_threads;
      rows = warp_threads / columns;
    }
    blocks = (groups.channels + columns - 1) / columns;
    if (warps > blocks) slices = warps / blocks;
  }
  /// Sums of every channel that are kept apart at first.
  ALLNORM_HOST_DEVICE int slots() const { return slices * rows; }
};
template <class T>
Room backward_room(const Groups& groups, const TeamShape& team) {
  return {groups, sizeof(T), 2, sizeof(GradCoefficients<compute_t<T>>),
          groups.channels * ChannelSums(groups, team).slots()};
}

/// A team's group in backward: its values on chip.
template <class T, int width>
struct KeptPair {
  Vector<T, width>*x, *dy;

  __device__ void fill(const T* from_x, const T* from_dy, const Groups& groups, const TeamShape& team) const {
    const int vectors = groups.size / width;
    for (int begin = team.lane(); begin < vectors; begin += loads * team.threads) {
      Vector<T, width> of_x[loads], of_dy[loads];
      for (int k = 0; k < loads; ++k)
        if (const int v = begin + k * team.threads; v < vectors) {
          const std::int64_t at = groups.offset(v * width);
          of_x[k] = read_vector<width>(from_x + at, Hint::last);
          of_dy[k] = read_vector<width>(from_dy + at, Hint::last);
        }
      for (int k = 0; k < loads; ++k)
        if (const int v = begin + k * team.threads; v < vectors) {
          x[v] = of_x[k];
          dy[v] = of_dy[k];
        }
    }
  }
};

/// Sums of g and g * (x - center) over the values first, first + step, ... of channel j.
template <class T>
__device__ SumPair channel_sums(const T* x, const T* dy, const Groups& groups, int j, int first, int step,
                                const GradCoefficients<compute_t<T>>& k, const Gating<compute_t<T>>& gate,
                                std::int64_t base) {
  using C = compute_t<T>;
  const int values = groups.size / groups.channels;
  SumPair sum;
  C some_g = 0, some_gx = 0;
  int added = 0;
  for (int s = first; s < values; s += step) {
    const int i = groups.value_of(j, s);
    const C centred = widen(x[i]) - k.center;
    const unsigned bits = gate.kind == GateKind::mask ? gate.bits_at(base + groups.offset(i)) : 0u;
    const C g = gate.gated(widen(dy[i]), centred, k.gate_scale, k.gate_shift, bits & 1u);
    some_g += g;
    some_gx = fma(g, centred, some_gx);
    if (++added < values_per_sum) continue;
    sum.a += static_cast<double>(some_g);
    sum.b += static_cast<double>(some_gx);
    some_g = some_gx = 0;
    added = 0;
  }
  return {sum.a + static_cast<double>(some_g), sum.b + static_cast<double>(some_gx)};
}

/// The sums of all channels of a team's group to `sums` (slots, channels, 2).
template <class T>
__device__ void sum_channels(const T* x, const T* dy, const Groups& groups, const TeamShape& team,
                             const GradCoefficients<compute_t<T>>* table, const Gating<compute_t<T>>& gate,
                             std::int64_t base, double* sums) {
  const ChannelSums plan(groups, team);
  const int lane = team.lane() % warp_threads, warps = team.threads / warp_threads;
  for (int item = team.lane() / warp_threads; item < plan.blocks * plan.slices; item += warps) {
    const int block = item % plan.blocks, slice = item / plan.blocks;
    if (plan.columns == 1) {
      const auto sum = team_sum(channel_sums(x, dy, groups, block, slice * warp_threads + lane,
                                             plan.slices * warp_threads, table[block], gate, base),
                                TeamShape{});
      if (lane != 0) continue;
      sums[2 * item] = sum.a;
      sums[2 * item + 1] = sum.b;
    } else {
      const int j = block * plan.columns + lane % plan.columns, slot = slice * plan.rows + lane / plan.columns;
      if (j >= groups.channels || lane >= plan.rows * plan.columns) continue;
      const auto sum = channel_sums(x, dy, groups, j, slot, plan.slots(), table[j], gate, base);
      sums[2 * (slot * groups.channels + j)] = sum.a;
      sums[2 * (slot * groups.channels + j) + 1] = sum.b;
    }
  }
}

/// dx of rows; the parameters' gradients are sums over rows, which affine_grad_rows takes.
template <class T, int width>
__device__ void rows_backward(const BackwardArgs& args, const Groups& groups, const TeamShape& team,
                              const KeptPair<T, width>& kept, std::int64_t g) {
  using C = compute_t<T>;
  const int lane = team.lane(), vectors = groups.size / width;
  const auto frame = args.frame.get(g);
  const C center = static_cast<C>(frame.mean);
  SumPair sum;
  for (int v = lane; v < vectors; v += team.threads) {
    C value[width], gradient[width], weight[width], some_g = 0, some_gx = 0;
    unpack(at_place(kept.x, v), value);
    unpack(at_place(kept.dy, v), gradient);
    rows::load_parameter<width>(args.weight, v * width, weight);
    for (int e = 0; e < width; ++e) {
      const C product = weight[e] * gradient[e];
      some_g += product;
      some_gx = fma(product, value[e] - center, some_gx);
    }
    sum.a += static_cast<double>(some_g);
    sum.b += static_cast<double>(some_gx);
  }
  sum = team_sum(sum, team);
  sum.b += (static_cast<double>(center) - frame.mean) * sum.a;
  if (args.dx == nullptr) return;
  const auto k =
      formulas::apply_grad(frame.rstd, frame.correction.r, 1, frame.share, args.frame.scalars->count, sum.a, sum.b);
  const auto a = affine<C>(frame.mean, k.slope, k.offset);
  const C gain = static_cast<C>(k.gain);
  T* dx = static_cast<T*>(args.dx) + groups.base(g);
  for (int v = lane; v < vectors; v += team.threads) {
    C value[width], gradient[width], weight[width];
    unpack(at_place(kept.x, v), value);
    unpack(at_place(kept.dy, v), gradient);
    rows::load_parameter<width>(args.weight, v * width, weight);
    for (int e = 0; e < width; ++e)
      value[e] = fma(gradient[e] * weight[e], gain, affine_of(value[e] - a.center, a.scale, a.shift));
    write_vector(dx + v * width, pack<T>(value));
  }
}

/// dx and dresidual of a group with channels; dgamma and dbeta of every fine group to `of_fine` (2, fine groups).
template <class T, int width>
__device__ void channels_backward(const BackwardArgs& args, const Groups& groups, const TeamShape& team,
                                  const KeptPair<T, width>& kept, const Gating<compute_t<T>>& gate, std::int64_t g,
                                  GradCoefficients<compute_t<T>>* table, double* sums, double* of_fine) {
  using C = compute_t<T>;
  const int lane = team.lane(), vectors = groups.size / width, slots = ChannelSums(groups, team).slots();
  const std::int64_t base = groups.base(g);
  const auto frame = args.frame.get(g);
  for (int j = lane; j < groups.channels; j += team.threads) {
    const std::int64_t p = groups.parameter(g, j);
    const auto k = formulas::apply(frame.rstd, frame.correction, args.weight[p], args.bias[p]);
    table[j] = grad_coefficients<C>(frame.mean, k.scale, k.shift, {});
  }
  team_sync(team);
  sum_channels(reinterpret_cast<const T*>(kept.x), reinterpret_cast<const T*>(kept.dy), groups, team, table, gate, base,
               sums);
  team_sync(team);
  SumPair of_group;  // s1, s2
  const std::int64_t fine_groups = groups.count * groups.channels;
  for (int j = lane; j < groups.channels; j += team.threads) {
    SumPair sum;
    for (int item = j; item < groups.channels * slots; item += groups.channels) {
      sum.a += sums[2 * item];
      sum.b += sums[2 * item + 1];
    }
    sum.b += (static_cast<double>(table[j].center) - frame.mean) * sum.a;
    const auto terms = steps::grad_terms(frame, args.weight[groups.parameter(g, j)], sum.a, sum.b);
    of_group.a += terms.s1;
    of_group.b += terms.s2;
    of_fine[g * groups.channels + j] = terms.dgamma;
    of_fine[fine_groups + g * groups.channels + j] = terms.dbeta;
  }
  of_group = team_sum(of_group, team);
  if (args.dx == nullptr && args.dresidual == nullptr) return;
  for (int j = lane; j < groups.channels; j += team.threads) {
    const std::int64_t p = groups.parameter(g, j);
    const double weight = args.weight[p];
    const auto k = formulas::apply(frame.rstd, frame.correction, weight, args.bias[p]);
    table[j] = grad_coefficients<C>(frame.mean, k.scale, k.shift,
                                    formulas::apply_grad(frame.rstd, frame.correction.r, weight, frame.share,
                                                         args.frame.scalars->count, of_group.a, of_group.b));
  }
  team_sync(team);
  for (int v = lane; v < vectors; v += team.threads) {
    const std::int64_t at = base + groups.offset(v * width);
    C value[width], gradient[width];
    unpack(at_place(kept.x, v), value);
    unpack(at_place(kept.dy, v), gradient);
    const unsigned bits = gate.bits_at(at);
    ChannelWalk walk(groups, v * width);
    for (int e = 0; e < width; ++e, walk.step()) {
      const GradCoefficients<C> k = table[walk.channel];
      const C centred = value[e] - k.center;
      gradient[e] = gate.gated(gradient[e], centred, k.gate_scale, k.gate_shift, (bits >> e) & 1u);
      value[e] = fma(gradient[e], k.gain, fma(centred, k.slope, k.offset));
    }
    if (args.dx != nullptr) write_vector(static_cast<T*>(args.dx) + at, pack<T>(value));
    if (args.dresidual != nullptr) write_vector(static_cast<T*>(args.dresidual) + at, pack<T>(gradient));
  }
}

template <class T, int width, bool by_rows>
__global__ void __launch_bounds__(most_threads)
    groupwise_backward_kernel(const BackwardArgs args, const Groups groups, const Room room, const TeamShape team,
                              const Gating<compute_t<T>> gate, double* of_fine) {
  using C = compute_t<T>;
  const std::int64_t g = team.place();
  if (g >= groups.count) return;
  auto* own = dynamic_shared<unsigned char>() + threadIdx.x / static_cast<unsigned>(team.threads) * room.bytes;
  const KeptPair<T, width> kept{reinterpret_cast<Vector<T, width>*>(own),
                                reinterpret_cast<Vector<T, width>*>(own + room.values)};
  const std::int64_t base = groups.base(g);
  kept.fill(static_cast<const T*>(args.x) + base, static_cast<const T*>(args.dy) + base, groups, team);
  if constexpr (by_rows)
    rows_backward(args, groups, team, kept, g);
  else
    channels_backward(args, groups, team, kept, gate, g, reinterpret_cast<GradCoefficients<C>*>(own + room.table),
                      reinterpret_cast<double*>(own + room.sums), of_fine);
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
  if (!args.rows) {
    const std::int64_t channels = args.fine.groups() / p.groups();
    // every fine group in order of its group, and whole channels in a run
    if (args.to_norm.divide != channels || channels * args.fine.reduce1 != p.reduce1) return false;
  }
  if (p.reduce0 > 1 && p.reduce1 * value_bytes < 16) return false;  // runs too short to be read apart
  const std::int64_t bytes = tensors * value_bytes * p.group_size();
  return bytes <= few_bytes || 2 * p.groups() >= device.multiProcessorCount;
}

/// Calls f with the vector's width, or 1, as a constant.
template <class T, class F>
void visit_width(bool is_vectorized, const F& f) {
  if (is_vectorized)
    f(std::integral_constant<int, vector_width<T>>{});
  else
    f(std::integral_constant<int, 1>{});
}

template <class T, class Args>
bool is_vectorized(const Args& args, std::initializer_list<const void*> tensors) {
  bool aligned = args.norm.reduce1 % vector_width<T> == 0;
  for (const void* p : tensors) aligned = aligned && is_vector_aligned(p);
  if (args.rows) aligned = aligned && is_vector_aligned(args.weight.data) && is_vector_aligned(args.bias.data);
  return aligned;
}

std::int64_t blocks_of(const Groups& groups, const TeamShape& team) {
  return (groups.count + team.teams - 1) / team.teams;
}

/// Fewer teams where those of a block would need much shared memory.
void share_room(TeamShape& team, const Room& room) {
  while (team.teams > 1 && team.teams * room.bytes > few_bytes) team.teams /= 2;
}

}  // namespace

bool groupwise_fits(const ForwardArgs& args, const cudaDeviceProp& device) {
  if (args.source != FrameSource::call || args.rules.persists || args.mask != nullptr) return false;
  if (!fits(args, 1, device)) return false;
  std::int64_t bytes = 0;
  visit(args.dtype, [&]<class T>(std::type_identity<T>) { bytes = forward_room<T>(groups_of(args)).bytes; });
  return bytes <= static_cast<std::int64_t>(device.sharedMemPerBlockOptin - static_shared);
}

void groupwise_forward(const ForwardArgs& args, Queue& queue) {
  const Groups groups = groups_of(args);
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    const Room room = forward_room<T>(groups);
    const Below<compute_t<T>> below(args.activation);
    visit_width<T>(is_vectorized<T>(args, {args.x, args.y, args.residual}), [&](auto width) {
      TeamShape team = team_for(groups.size, width, most_threads);
      share_room(team, room);
      const auto shared = static_cast<std::size_t>(team.teams * room.bytes);
      if (args.rows)
        launch(queue, blocks_of(groups, team), team.block_threads(), shared, groupwise_forward_kernel<T, width(), true>,
               args, groups, room, team, below);
      else
        launch(queue, blocks_of(groups, team), team.block_threads(), shared,
               groupwise_forward_kernel<T, width(), false>, args, groups, room, team, below);
    });
  });
}

bool groupwise_backward_fits(const BackwardArgs& args, const cudaDeviceProp& device) {
  if (!fits(args, 2, device)) return false;
  const Groups groups = groups_of(args);
  std::int64_t bytes = 0;
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    bytes = backward_room<T>(groups, TeamShape{most_threads, 1}).bytes;
  });
  return bytes <= static_cast<std::int64_t>(device.sharedMemPerBlockOptin - static_shared);
}

void groupwise_backward(const BackwardArgs& args, Queue& queue) {
  if (args.rows && args.wants_weight && rows_grad_fits(args)) return rows_grad(args, queue);
  const Groups groups = groups_of(args);
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    const Gating<compute_t<T>> gate(args.activation, args.mask);
    visit_width<T>(is_vectorized<T>(args, {args.x, args.dy, args.dx, args.dresidual}), [&](auto width) {
      TeamShape team = team_for(groups.size, width, most_threads);
      const Room room = backward_room<T>(groups, team);
      share_room(team, room);
      const auto shared = static_cast<std::size_t>(team.teams * room.bytes);
      if (args.rows)
        launch(queue, blocks_of(groups, team), team.block_threads(), shared,
               groupwise_backward_kernel<T, width(), true>, args, groups, room, team, gate, args.scratch);
      else
        launch(queue, blocks_of(groups, team), team.block_threads(), shared,
               groupwise_backward_kernel<T, width(), false>, args, groups, room, team, gate, args.scratch);
    });
  });
  if (!args.wants_weight) return;
  if (args.rows)
    affine_grad_of_rows(args, queue);
  else
    add_fine(args.scratch, args.fine.groups(), args.to_affine, args.parameters, args.dweight, args.dbias, queue);
}

}  // namespace allnorm::cuda
