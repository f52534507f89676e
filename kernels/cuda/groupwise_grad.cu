// Backward of norms whose groups fit on chip, for a lone rank: a team of threads keeps x and dy of a group in shared
// memory, so that they cross the memory bus once.
#include "kernels/cuda/groupwise.cuh"

namespace allnorm::cuda {
namespace {

using namespace groupwise;

constexpr int values_per_sum = 16;  // that are added in the compute type

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

/// Sums of g and g * (x - center) * power over the values first, first + step, ... of channel j.
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
    const C centred = centred_of(widen(x[i]), k.center, k.power);
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
  const auto normal = affine<C>(frame.mean, frame.rstd, 0);
  SumPair sum;
  for (int v = lane; v < vectors; v += team.threads) {
    C value[width], gradient[width], weight[width], some_g = 0, some_gx = 0;
    unpack(at_place(kept.x, v), value);
    unpack(at_place(kept.dy, v), gradient);
    rows::load_parameter<width>(args.weight, v * width, weight);
    for (int e = 0; e < width; ++e) {
      const C product = weight[e] * gradient[e];
      some_g += product;
      some_gx = fma(product, centred_of(value[e], normal.center, normal.power), some_gx);
    }
    sum.a += static_cast<double>(some_g);
    sum.b += static_cast<double>(some_gx);
  }
  sum = team_sum(sum, team);
  sum.b = sum.b / static_cast<double>(normal.power) + (static_cast<double>(normal.center) - frame.mean) * sum.a;
  if (args.dx == nullptr) return;
  const auto k = steps::grad_of(args, frame, 1, args.frame.scalars->count, sum.a, sum.b);
  const auto a = affine<C>(frame.mean, {k.power, k.slope}, k.offset);
  const C gain = static_cast<C>(k.gain);
  T* dx = static_cast<T*>(args.dx) + groups.base(g);
  for (int v = lane; v < vectors; v += team.threads) {
    C value[width], gradient[width], weight[width];
    unpack(at_place(kept.x, v), value);
    unpack(at_place(kept.dy, v), gradient);
    rows::load_parameter<width>(args.weight, v * width, weight);
    for (int e = 0; e < width; ++e)
      value[e] =
          fma(gradient[e] * weight[e], gain, affine_of(centred_of(value[e], a.center, a.power), a.scale, a.shift));
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
  const formulas::GradCoefficients before{.power = formulas::split(frame.rstd).power};
  for (int j = lane; j < groups.channels; j += team.threads) {
    const std::int64_t p = groups.parameter(g, j);
    const auto k = formulas::apply(frame.rstd, frame.correction, args.weight[p], args.bias[p]);
    table[j] = grad_coefficients<C>(frame.mean, k.scale, k.shift, before);
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
    sum.b = sum.b / static_cast<double>(table[j].power) + (static_cast<double>(table[j].center) - frame.mean) * sum.a;
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
    table[j] =
        grad_coefficients<C>(frame.mean, k.scale, k.shift,
                             steps::grad_of(args, frame, weight, args.frame.scalars->count, of_group.a, of_group.b));
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
      const C centred = centred_of(value[e], k.center, k.power);
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

}  // namespace

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
