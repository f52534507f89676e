#include "kernels/cpu/slabs.hpp"

#include <bit>
#include <cstddef>
#include <numeric>

namespace allnorm::cpu {

namespace {

constexpr std::int64_t slab_bytes = 512 << 10;  // read of a slab: with what is written, most of a core's second cache
constexpr std::int64_t most_bytes = 2 * slab_bytes;  // where one index of the outermost extent is longer

/// A canonical partition along its outermost extent above 1.
struct Outermost {
  std::int64_t Partition::*extent = &Partition::reduce1;
  std::int64_t values = 1;  // of one index
  std::int64_t groups = 0;  // that it alone has; 0: the extent is reduced

  explicit Outermost(const Partition& p) noexcept {
    if (p.keep0 > 1)
      *this = {&Partition::keep0, p.reduce0 * p.keep1 * p.reduce1, p.keep1};
    else if (p.reduce0 > 1)
      *this = {&Partition::reduce0, p.keep1 * p.reduce1, 0};
    else if (p.keep1 > 1)
      *this = {&Partition::keep1, p.reduce1, 1};
  }

  /// Groups before the value at memory offset `first`, where the extent is kept.
  std::int64_t groups_before(std::int64_t first) const noexcept { return first / values * groups; }
  Partition part_of(Partition p, std::int64_t some) const noexcept {
    p.*extent = some / values;
    return p;
  }

 private:
  Outermost(std::int64_t Partition::*e, std::int64_t v, std::int64_t g) noexcept : extent(e), values(v), groups(g) {}
};

/// Values that every cut is to be a multiple of, so that no index of an outermost extent lies in two slabs and masks
/// begin with a byte; 0 where there is no such cut.
std::int64_t step_of(const LayerCall& call) noexcept {
  const Outermost norm(canonical(call.norm)), fine(canonical(call.fine)), affine(canonical(call.affine));
  if (call.norm.elements() == 0) return 0;
  const std::int64_t other = call.along ? affine.values : fine.values, step = max_of(norm.values, other);
  if (step % norm.values != 0 || step % other != 0) return 0;
  return step * (8 / std::gcd(step, std::int64_t{8}));
}

Slabs cut(const LayerCall& call, std::int64_t bytes_per_value, const Queue& queue) noexcept {
  const std::int64_t whole = call.norm.elements(), step = step_of(call);
  if (step == 0) return {};
  std::int64_t most = slab_bytes / bytes_per_value;
  if (queue.threads() > 1) most = min_of(most, max_of(task_values, whole / (4 * queue.threads())));
  const std::int64_t slab = max_of(1, most / step) * step;
  if (slab >= whole || slab * bytes_per_value > most_bytes) return {};
  return {whole, slab, slab};
}

/// Nothing is exchanged, and every group lies in one index of the outermost extent.
bool is_local(const LayerCall& call) noexcept {
  return call.record == nullptr && call.rules.takes_moments() && Outermost(canonical(call.norm)).groups > 0;
}

/// Every value has a gamma of its own, and what asks for its gradient is of the type that values are computed in.
bool is_map_of_gradients(const BackwardArgs& args) noexcept {
  const DType type = args.dtype == DType::f64 ? DType::f64 : DType::f32;
  const auto fits = [type](const ParameterGrad& grad) { return grad.data == nullptr || grad.dtype == type; };
  return fits(args.dweight) && fits(args.dbias);
}

template <class T>
void move(T*& pointer, std::int64_t by) noexcept {
  if (pointer != nullptr) pointer += by;
}
void move(const void*& tensor, DType dtype, std::int64_t values) noexcept {
  if (tensor != nullptr)
    tensor = static_cast<const std::byte*>(tensor) + values * static_cast<std::int64_t>(size_of(dtype));
}
void move(void*& tensor, DType dtype, std::int64_t values) noexcept {
  if (tensor != nullptr) tensor = static_cast<std::byte*>(tensor) + values * static_cast<std::int64_t>(size_of(dtype));
}

/// What both directions have; the groups of the norm and of gamma along that lie before the part.
struct Before {
  std::int64_t groups, along;
};
Before move_to(LayerCall& call, std::int64_t first, std::int64_t values) noexcept {
  call.norm = canonical(call.norm), call.fine = canonical(call.fine), call.affine = canonical(call.affine);
  const Outermost norm(call.norm), fine(call.fine), affine(call.affine);
  const Before before{norm.groups_before(first), call.along ? affine.groups_before(first) : 0};
  move(call.x, call.dtype, first);
  call.norm = norm.part_of(call.norm, values);
  call.fine = fine.part_of(call.fine, values);
  if (call.along) {
    call.affine = affine.part_of(call.affine, values);
    move(call.weight.data, call.weight.dtype, before.along);
    move(call.bias.data, call.bias.dtype, before.along);
  }
  call.to_affine.first = fine.groups_before(first);
  move(call.direct.mean.data, call.direct.mean.dtype, before.groups);
  move(call.direct.sigma.data, call.direct.sigma.dtype, before.groups);
  steps::FrameView& f = call.frame;
  for (double** array : {&f.mean, &f.var, &f.rstd, &f.r, &f.d, &f.share, &f.sigma}) move(*array, before.groups);
  return before;
}

}  // namespace

Slabs slabs_of(const ForwardArgs& args, const Queue& queue) {
  // The steps of layers with a state of their own per channel read it by the call's groups.
  if (!is_local(args) || args.source != FrameSource::call || (args.rules.persists && !args.rules.pools)) return {};
  if (args.rules.nonfinite == NonFinite::fail) return {};  // y is not written before all groups are known
  const std::int64_t tensors = args.residual == nullptr ? 1 : 2, size = static_cast<std::int64_t>(size_of(args.dtype));
  // A map of a large tensor waits for its streamed results, and reads x in the meantime at no cost.
  if (args.norm.elements() * size >= stream_bytes) return {};
  return cut(args, tensors * size, queue);
}

Slabs slabs_of(const BackwardArgs& args, const Queue& queue) {
  if (!is_local(args) || (args.dx == nullptr && args.dresidual == nullptr)) return {};
  Slabs slabs = cut(args, 2 * static_cast<std::int64_t>(size_of(args.dtype)), queue);
  if (!slabs.cuts() || !args.along || !args.wants_weight) return slabs;
  if (!sums_along(args)) return is_map_of_gradients(args) ? slabs : Slabs{};
  const Partition affine = canonical(args.affine);
  const ColumnGrid grid = along_grid(affine);
  const bool is_of_columns =
      affine.keep0 == 1 && affine.reduce1 == 1 && grid.width % Outermost(canonical(args.norm)).values == 0;
  if (!is_of_columns || grid.parts < queue.threads()) return {};
  // As many rows as a power of two that parts are multiples of, and what a cut must be a multiple of is one.
  const std::int64_t most = grid.part_rows & -grid.part_rows;
  const auto rows = static_cast<std::uint64_t>(min_of(most, slabs.slab / grid.width));
  slabs.slab = static_cast<std::int64_t>(std::bit_floor(rows)) * grid.width;
  slabs.task = grid.part_rows * grid.width;
  return slabs.slab < slabs.whole ? slabs : Slabs{};
}

Slabs slabs_of_maps(const BackwardArgs& args, const Queue& queue) {
  return cut(args, 2 * static_cast<std::int64_t>(size_of(args.dtype)), queue);
}

bool maps_with_gradient(const BackwardArgs& args) noexcept {
  return args.along && args.wants_weight && args.affine.group_size() == 1 && is_map_of_gradients(args) &&
         (args.dx != nullptr || args.dresidual != nullptr);
}

ForwardArgs Slabs::part_of(ForwardArgs args, std::int64_t first, std::int64_t values) {
  const Before before = move_to(args, first, values);
  move(args.residual, args.dtype, first);
  move(args.y, args.dtype, first);
  move(args.mask, first / 8);
  move(args.mean, before.groups);
  move(args.m2, before.groups);
  return args;
}

BackwardArgs Slabs::part_of(BackwardArgs args, std::int64_t first, std::int64_t values) {
  const Before before = move_to(args, first, values);
  move(args.dy, args.dtype, first);
  move(args.dx, args.dtype, first);
  move(args.dresidual, args.dtype, first);
  move(args.mask, first / 8);
  move(args.dweight.data, args.dweight.dtype, before.along);
  move(args.dbias.data, args.dbias.dtype, before.along);
  args.sums += 2 * before.groups;
  return args;
}

Queue& Slabs::queue_of_one() {
  static Queue queue = Queue::cpu(1);  // it keeps nothing, so that threads may share it
  return queue;
}

}  // namespace allnorm::cpu
