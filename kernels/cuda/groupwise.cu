// Forward of norms whose groups fit on chip, for a lone rank: layer, group and instance norm. A team of threads keeps a
// whole group in shared memory, so that x crosses the memory bus once. The path through forward_local and
// forward_finish is the slow twin that serves every other call.
#include "kernels/cuda/groupwise.cuh"

namespace allnorm::cuda {
namespace {

using namespace groupwise;

template <class T, bool along>
Room forward_room(const Groups& groups) {
  return {groups, sizeof(T), 1, ChannelTable<Affine<compute_t<T>>, along>::bytes, 0};
}

template <class T, int width, class Gammas>
__global__ void __launch_bounds__(most_threads)
    groupwise_forward_kernel(const __grid_constant__ ForwardArgs args, const Groups groups, const Room room,
                             const TeamShape team, const Below<compute_t<T>> below, const Gammas gammas) {
  using C = compute_t<T>;
  const std::int64_t g = team.place();
  if (g >= groups.count) return;  // a whole warp: a block that is one team always has a group
  auto* own = dynamic_shared<unsigned char>() + threadIdx.x / static_cast<unsigned>(team.threads) * room.bytes;
  auto* kept = reinterpret_cast<Vector<T, width>*>(own);
  ChannelTable<Affine<C>, Gammas::along> table(own + room.table);
  const std::int64_t base = groups.base(g);
  const T* x = static_cast<const T*>(args.x) + base;
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
    squares += sum_of_squares<T, width>(some, [&](auto e) { return value[e] - center; });
  }
  const double off = mean - static_cast<double>(center), m2 = team_sum(squares, team) - count * off * off;
  const auto no_lane = [](std::int64_t, bool) { return 0.0; };
  Turn turn;
  turn.count = count;
  const auto frame = steps::frame_of(args.rules, args.state, turn, g, steps::moments_of(count, mean, m2 < 0 ? 0 : m2),
                                     no_lane, false, steps::learned_eps_of(args, g));
  if (lane == 0) args.frame.set(g, frame);
  if (lane == 0 && g == 0) {  // nothing in this kernel reads what counts calls
    write_turn(args, steps::turn_of(args, {}));
    ++*args.state.parity;
  }

  table.fill(groups, team, [&](int j) { return affine_frame<C, Gammas::along>(args, frame, groups.fine(g, j)); });
  const auto gammas_here = gammas.from(base);
  T* y = static_cast<T*>(args.y) + base;
  const T* residual = args.residual == nullptr ? nullptr : static_cast<const T*>(args.residual) + base;
  const auto map = [&](auto plain) {
    for (int v = lane; v < vectors; v += team.threads) {
      const std::int64_t at = groups.offset(v * width);
      C value[width], other[width] = {};
      unpack(at_place(kept, v), value);
      if (!plain && residual != nullptr) unpack(read_vector<width>(residual + at, Hint::last), other);
      const auto values = gammas_here.template load<C, width>(at, width, true);
      with_channels<width>(groups, table, v * width, [&](const auto& k) {
        for (int e = 0; e < width; ++e)
          value[e] = y_of<plain()>(value[e], k(e), values.own(e), residual != nullptr, other[e], below);
      });
      write_vector(y + at, pack<T>(value));
    }
  };
  if (residual == nullptr && below.is_identity())
    map(std::true_type{});
  else
    map(std::false_type{});
}

}  // namespace

bool groupwise_fits(const ForwardArgs& args, const cudaDeviceProp& device) {
  if (args.source != FrameSource::call || args.rules.persists || args.mask != nullptr) return false;
  if (args.rules.nonfinite != NonFinite::propagate) return false;  // its kernel tells nothing of what is not finite
  if (!fits(args, 1, device)) return false;
  const Groups groups = groups_of(args);
  std::int64_t bytes = 0;
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    bytes = (args.along ? forward_room<T, true>(groups) : forward_room<T, false>(groups)).bytes;
  });
  return bytes <= static_cast<std::int64_t>(device.sharedMemPerBlockOptin - static_shared);
}

void groupwise_forward(const ForwardArgs& args, Queue& queue) {
  const Groups groups = groups_of(args);
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    visit_width<T>(args, {args.x, args.y, args.residual}, [&](auto width, const auto& gammas) {
      using Gammas = std::remove_cvref_t<decltype(gammas)>;
      const Room room = forward_room<T, Gammas::along>(groups);
      TeamShape team = team_for(groups.size, width, most_threads);
      share_room(team, room);
      launch(queue, blocks_of(groups, team), team.block_threads(), static_cast<std::size_t>(team.teams * room.bytes),
             groupwise_forward_kernel<T, width(), Gammas>, args, groups, room, team,
             Below<compute_t<T>>(args.activation), gammas);
    });
  });
}

}  // namespace allnorm::cuda
