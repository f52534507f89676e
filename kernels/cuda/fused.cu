// A forward call of a lone rank's batch norm in one cooperative launch. The path through forward_local and
// forward_finish is its slow twin.
#include <atomic>

#include "kernels/cuda/fused.cuh"
#include "kernels/cuda/fused.hpp"
#include "kernels/cuda/moments.cuh"

namespace allnorm::cuda {
namespace {

std::atomic<FusedPath> fused_path{FusedPath::automatic};

template <class Element, int width>
struct ForwardWork {
  using T = Element;
  using C = compute_t<T>;
  using Task = MomentsTask<T>;
  using Map = ApplyMap<T, width>;
  using Coefficients = Affine<C>;
  static constexpr int n = width, tensors = 1;

  Task task;
  Map map;
  ForwardArgs args;

  template <class Kept>
  __device__ __forceinline__ void keep(const Vector<T, n>& x, const Kept& kept, int item) const {
    kept.put(item, 0, x);
  }
  template <class Kept>
  __device__ __forceinline__ typename Map::Loaded restored(std::int64_t at, const Kept& kept, int item) const {
    typename Map::Loaded loaded = {};
    loaded.x = kept.get(item, 0);
    if (map.residual != nullptr) loaded.residual = read_vector<n>(map.residual + at, Hint::last);
    return loaded;
  }
  /// Frame and next state of group g.
  __device__ __attribute__((noinline)) Coefficients step(std::int64_t g) const {
    const Turn turn = steps::turn_of(args, {});
    const auto f = steps::frame_of(args, {}, turn, g, true);
    args.frame.set(g, f);
    if (g == 0) write_turn(args, turn);
    return affine_frame<C>(args, f, g);
  }
  /// The next state becomes the current one.
  __device__ void end() const { end_turn(args, *args.state.last); }
};

/// Values that a thread writes at a time: those that can be read at once, or 1; none where that leaves the mask's bytes
/// to several threads.
int width_of(const ForwardArgs& args) {
  const bool aligned = is_vector_aligned(args.x) && is_vector_aligned(args.residual) && is_vector_aligned(args.y);
  const int width = static_cast<int>(16 / size_of(args.dtype));
  const int n = aligned && in_vectors(canonical(args.norm), width) ? width : 1;
  return args.mask != nullptr && n != mask_byte ? 0 : n;
}

}  // namespace

void set_fused_path(FusedPath path) noexcept { fused_path = path; }

std::int64_t fused_blocks(Queue& queue) {
  return std::int64_t{properties_of(queue).multiProcessorCount} - queue.multiprocessors_left();
}

bool fusing_pays(std::int64_t elements, std::int64_t bytes, Queue& queue) {
  const cudaDeviceProp& device = properties_of(queue);
  const std::int64_t processors = fused_blocks(queue);
  if (device.cooperativeLaunch == 0 || processors <= 0) return false;
  switch (fused_path.load()) {
    case FusedPath::never:
      return false;
    case FusedPath::always:
      return true;
    case FusedPath::automatic:
      break;
  }
  // Two launches cost about what the grid's waits do, so the gain is the second reading. It is small where a block has
  // less than a part's worth of values; and where the tensor exceeds what is kept on chip and in the L2 cache together,
  // the rest comes from memory again, in blocks that have fewer threads than those of the separate kernels. Both bounds
  // are reasoned and not measured.
  const std::int64_t on_chip = processors * static_cast<std::int64_t>(device.sharedMemPerBlockOptin);
  return elements >= processors * part_minimum && bytes <= on_chip + device.l2CacheSize;
}

bool fused_fits(const ForwardArgs& args, Queue& queue) {
  // With compensation, weights that changed are to be told, and the window's products come with the exchange.
  const bool can = args.source == FrameSource::call && args.record == nullptr && args.rules.persists &&
                   !args.rules.pools && !args.along && args.norm.elements() > 0 && args.fine == args.norm &&
                   !args.rules.compensates() && args.weights == nullptr && args.reporter.report == nullptr;
  if (!can || width_of(args) == 0) return false;
  const auto bytes = args.norm.elements() * static_cast<std::int64_t>(size_of(args.dtype));
  return fusing_pays(args.norm.elements(), bytes, queue);
}

void fused_forward(const ForwardArgs& args, Queue& queue) {
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto width) {
      const auto* x = static_cast<const T*>(args.x);
      const ForwardWork<T, width()> work{
          MomentsTask<T>{x, {args.mean, args.m2, {}}},
          {x, static_cast<const T*>(args.residual), static_cast<T*>(args.y), args.mask,
           Below<compute_t<T>>(args.activation), true, result_hint(queue, args.norm, sizeof(T))},
          args};
      run_fused(work, canonical(args.norm), queue);
    };
    if (width_of(args) == 1)
      run(std::integral_constant<int, 1>{});
    else
      run(std::integral_constant<int, vector_width<T>>{});
  });
}

}  // namespace allnorm::cuda
