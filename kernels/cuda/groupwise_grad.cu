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
template <class T, bool along>
Room backward_room(const Groups& groups, const TeamShape& team) {
  return {groups, sizeof(T), 2, ChannelTable<GradCoefficients<compute_t<T>>, along>::bytes,
          along ? 0 : groups.channels * ChannelSums(groups, team).slots()};
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

/// What a thread adds up: some values in the compute type, and those sums in double.
template <class C>
struct GroupSums {
  Sums all{};
  TwoSums<C> some{};

  template <class Own>
  __device__ __forceinline__ void add(C x, C dy, const GradCoefficients<C>& k, const Own& own, const Gating<C>& gate,
                                      unsigned bit) {
    some.add(own.weighted(g_of(x, dy, k, own, gate, bit)), centred_of(x, k.center, k.power));
  }
  __device__ __forceinline__ void flush() {
    all.add(some);
    some = {};
  }
};

/// Over the vectors of n values first, first + step, ... of channel j.
template <int n, class T, class Own>
__device__ Sums channel_sums(const T* x, const T* dy, const Groups& groups, int j, int first, int step,
                             const GradCoefficients<compute_t<T>>& k, const Gating<compute_t<T>>& gate,
                             std::int64_t base, const Own& own) {
  const int values = groups.size / groups.channels;
  GroupSums<compute_t<T>> sums;
  int added = 0;
  for (int s = first * n; s < values; s += step * n) {
    const int i = groups.value_of(j, s);
    const unsigned bits = gate.kind == GateKind::mask ? gate.bits_at(base + groups.offset(i)) : 0u;
    compute_t<T> value[n], gradient[n];
    unpack(read_vector<n>(x + i), value);
    unpack(read_vector<n>(dy + i), gradient);
    for (int e = 0; e < n; ++e) sums.add(value[e], gradient[e], k, own, gate, (bits >> e) & 1u);
    if ((added += n) % values_per_sum == 0) sums.flush();
  }
  sums.flush();
  return sums.all;
}

/// The sums of all channels of a team's group to `sums` (slots, channels); own_of(j) is the Own of channel j's values,
/// of which n from a multiple of n on belong to one channel.
template <int n, class T, class OwnOf>
__device__ void sum_channels(const T* x, const T* dy, const Groups& groups, const TeamShape& team,
                             const ChannelTable<GradCoefficients<compute_t<T>>, false>& table,
                             const Gating<compute_t<T>>& gate, std::int64_t base, Sums* sums, const OwnOf& own_of) {
  const ChannelSums plan(groups, team);
  const int lane = team.lane() % warp_threads, warps = team.threads / warp_threads;
  for (int item = team.lane() / warp_threads; item < plan.blocks * plan.slices; item += warps) {
    const int block = item % plan.blocks, slice = item / plan.blocks;
    if (n > 1 || plan.columns == 1) {
      const auto sum = team_sum(channel_sums<n>(x, dy, groups, block, slice * warp_threads + lane,
                                                plan.slices * warp_threads, table[block], gate, base, own_of(block)),
                                TeamShape{});
      if (lane == 0) sums[item] = sum;
    } else {
      const int j = block * plan.columns + lane % plan.columns, slot = slice * plan.rows + lane / plan.columns;
      if (j >= groups.channels || lane >= plan.rows * plan.columns) continue;
      sums[slot * groups.channels + j] =
          channel_sums<n>(x, dy, groups, j, slot, plan.slots(), table[j], gate, base, own_of(j));
    }
  }
}

/// The Own of the values of a fine group where gamma is folded.
template <class C>
__device__ __forceinline__ FoldedOwn own_of(const FoldedGammas&, std::int64_t, bool) {
  return {};
}
template <class C>
__device__ __forceinline__ FloorOwn<C> own_of(const FloorGammas& gammas, std::int64_t fine, bool rest) {
  return {static_cast<C>(gammas.floor[fine]), rest};
}

/// `gated`: there may be an activation; a row without one spares the registers. x and dy are read once; dx and
/// dresidual; and where gamma is folded, dgamma and dbeta of every fine group to `of_fine` (2, fine groups), those of
/// a level and a learned eps to its fifth and sixth row.
template <class T, int width, class Gammas, bool gated>
__global__ void __launch_bounds__(most_threads, gated ? 1 : 2)
    groupwise_backward_kernel(const BackwardArgs args, const Groups groups, const Room room, const TeamShape team,
                              const Gating<compute_t<T>> gating, const Gammas all_gammas, double* of_fine) {
  using C = compute_t<T>;
  const std::int64_t g = team.place();
  if (g >= groups.count) return;
  auto* own = dynamic_shared<unsigned char>() + threadIdx.x / static_cast<unsigned>(team.threads) * room.bytes;
  const KeptPair<T, width> kept{reinterpret_cast<Vector<T, width>*>(own),
                                reinterpret_cast<Vector<T, width>*>(own + room.values)};
  const int lane = team.lane(), vectors = groups.size / width;
  const std::int64_t base = groups.base(g);
  kept.fill(static_cast<const T*>(args.x) + base, static_cast<const T*>(args.dy) + base, groups, team);

  auto gate = gating;
  if constexpr (!gated) gate.kind = GateKind::open;
  const auto gammas = all_gammas.from(base);
  const bool gate_reads = gate.kind == GateKind::sign;
  const auto frame = args.frame.get(g);
  const formulas::GradCoefficients before{.power = formulas::split(frame.rstd).power};
  ChannelTable<GradCoefficients<C>, Gammas::along> table(own + room.table);
  table.fill(groups, team, [&](int j) {
    const auto k = apply_of<Gammas::along>(args, frame, groups.fine(g, j));
    return grad_coefficients<C>(frame.mean, k.scale, k.shift, before);
  });
  Sums of_group;  // s1, s2
  const auto terms_of = [&](const Sums& sums, int j) {
    const Sums s = about_frame(sums, table[j].center, table[j].power, frame.mean);
    const auto terms =
        steps::grad_terms(frame, Gammas::along ? 1 : steps::gamma_of(args, groups.fine(g, j)), s.sum, s.second);
    of_group.add(Sums{terms.s1, terms.s2});
    return terms;
  };
  if constexpr (Gammas::along) {
    GroupSums<C> sums;
    for (int v = lane; v < vectors; v += team.threads) {
      const std::int64_t at = groups.offset(v * width);
      C value[width], gradient[width];
      unpack(at_place(kept.x, v), value);
      unpack(at_place(kept.dy, v), gradient);
      const unsigned bits = gate.bits_at(base + at);
      const auto values = gammas.template load<C, width>(at, width, gate_reads);
      for (int e = 0; e < width; ++e) sums.add(value[e], gradient[e], table[0], values.own(e), gate, (bits >> e) & 1u);
      sums.flush();
    }
    terms_of(sums.all, 0);
  } else {
    auto* sums = reinterpret_cast<Sums*>(own + room.sums);
    const std::int64_t fine = groups.count * groups.channels;
    const auto sum_up = [&](bool rest, const auto& take) {  // take(j, sums of channel j)
      const auto by = [&](auto n) {
        sum_channels<n()>(reinterpret_cast<const T*>(kept.x), reinterpret_cast<const T*>(kept.dy), groups, team, table,
                          gate, base, sums, [&](int j) { return own_of<C>(all_gammas, groups.fine(g, j), rest); });
      };
      if (groups.in_channels(width))
        by(std::integral_constant<int, width>{});
      else
        by(std::integral_constant<int, 1>{});
      team_sync(team);
      const int items = groups.channels * ChannelSums(groups, team).slots();
      for (int j = lane; j < groups.channels; j += team.threads) {
        Sums sum;
        for (int item = j; item < items; item += groups.channels) sum.add(sums[item]);
        take(j, sum);
      }
    };
    sum_up(false, [&](int j, const Sums& sum) {
      const auto terms = terms_of(sum, j);
      const std::int64_t f = groups.fine(g, j);
      of_fine[f] = terms.dgamma;
      of_fine[fine + f] = terms.dbeta;
      if (args.deps.data != nullptr) of_fine[5 * fine + f] = steps::eps_grad(args, f, terms.s2);
    });
    if constexpr (std::is_same_v<Gammas, FloorGammas>)
      if (args.dlevel.data != nullptr) {
        team_sync(team);
        sum_up(true, [&](int j, const Sums& sum) { of_fine[4 * fine + groups.fine(g, j)] = sum.sum; });
      }
  }
  of_group = team_sum(of_group, team);
  args.direct.join(args.frame.rstd, g, of_group.sum, of_group.second);
  if (args.dx == nullptr && args.dresidual == nullptr) return;

  table.fill(groups, team, [&](int j) {
    return grad_frame<C, Gammas::along>(args, args.frame.get(g), groups.fine(g, j), args.frame.scalars->count,
                                        of_group.sum, of_group.second);
  });
  for (int v = lane; v < vectors; v += team.threads) {
    const std::int64_t at = groups.offset(v * width);
    C value[width], gradient[width];
    unpack(at_place(kept.x, v), value);
    unpack(at_place(kept.dy, v), gradient);
    const unsigned bits = gate.bits_at(base + at);
    const auto values = gammas.template load<C, width>(at, width, gate_reads);
    with_channels<width>(groups, table, v * width, [&](const auto& k_of) {
      for (int e = 0; e < width; ++e) {
        const GradCoefficients<C> k = k_of(e);
        gradient[e] = g_of(value[e], gradient[e], k, values.own(e), gate, (bits >> e) & 1u);
        value[e] = dx_of(value[e], gradient[e], k, values.own(e));
      }
    });
    if (args.dx != nullptr) write_vector(static_cast<T*>(args.dx) + base + at, pack<T>(value));
    if (args.dresidual != nullptr) write_vector(static_cast<T*>(args.dresidual) + base + at, pack<T>(gradient));
  }
}

}  // namespace

bool groupwise_fits(const BackwardArgs& args, const cudaDeviceProp& device) {
  if (!fits(args, 2, device)) return false;
  const Groups groups = groups_of(args);
  const TeamShape team{most_threads, 1};
  std::int64_t bytes = 0;
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    bytes = (args.along ? backward_room<T, true>(groups, team) : backward_room<T, false>(groups, team)).bytes;
  });
  return bytes <= static_cast<std::int64_t>(device.sharedMemPerBlockOptin - static_shared);
}

void groupwise_backward(const BackwardArgs& args, Queue& queue) {
  if (args.along && args.wants_weight) reduce_affine_gradient(args, queue);  // first: dx may take dy's place
  const Groups groups = groups_of(args);
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    visit_width<T>(args, {args.x, args.dy, args.dx, args.dresidual}, [&](auto width, const auto& gammas) {
      using Gammas = std::remove_cvref_t<decltype(gammas)>;
      TeamShape team = team_for(groups.size, width, most_threads);
      const Room room = backward_room<T, Gammas::along>(groups, team);
      share_room(team, room);
      const Gating<compute_t<T>> gate(args.activation, args.mask);
      constexpr bool levels = std::is_same_v<Gammas, FloorGammas>;  // which are gates themselves
      const auto kernel = gate.kind == GateKind::open ? groupwise_backward_kernel<T, width(), Gammas, levels>
                                                      : groupwise_backward_kernel<T, width(), Gammas, true>;
      launch(queue, blocks_of(groups, team), team.block_threads(), static_cast<std::size_t>(team.teams * room.bytes),
             kernel, args, groups, room, team, gate, gammas, args.scratch);
    });
  });
  coarsen_more(args, queue);
  if (args.along || !args.wants_weight) return;
  const std::int64_t fine = args.fine.groups();
  coarsen({},
          {args.scratch, args.scratch + fine, fine, args.to_affine, args.affine.groups(), nullptr, nullptr,
           args.dweight, args.dbias},
          queue);
}

}  // namespace allnorm::cuda
