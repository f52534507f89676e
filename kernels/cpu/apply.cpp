// y = activation((x - center) * scale + shift + residual), or raised to a level; and the sign of y as bits.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/apply.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/gate-inl.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// The tensors, the activation, and whether y is streamed: not where it overwrites what was just read.
template <class T>
struct ApplyTensors {
  const T* x;
  const T* residual;
  T* y;
  Below<compute_t<T>> low;
  bool streams;

  ApplyTensors(const ApplyArgs& args, std::int64_t whole)
      : x(static_cast<const T*>(args.x)),
        residual(static_cast<const T*>(args.residual)),
        y(static_cast<T*>(args.y)),
        low(below<compute_t<T>>(args.activation)),
        streams(args.y != args.x && args.y != args.residual &&
                whole * static_cast<std::int64_t>(sizeof(T)) >= stream_bytes) {}
  const T* streamed(std::int64_t offset) const { return streams ? y + offset : nullptr; }
};

/// The level of a group where there is one.
template <ZKind kind, class C>
HWY_INLINE C level_of(const Floor& floor, std::int64_t group) {
  return kind == ZKind::level ? static_cast<C>(floor[group]) : C{0};
}

/// One vector at memory offset i, or its first n values; with `along`, its gamma and beta are those at `j` of `own`.
template <class T, ZKind kind, bool with_residual, bool along, Access access, class Own, class V, class... Power>
HWY_INLINE void apply_vector(const ApplyTensors<T>& t, std::int64_t i, std::int64_t n, const Own& own, std::int64_t j,
                             V center, V scale, V shift, V level, Power... power) {
  const WideTag<T> d;
  auto z = affine_of(centred_of(get<access>(d, t.x + i, n), center, power...), scale, shift);
  if constexpr (along) z = affine_of(z, get<access>(d, own.weight + j, n), get<access>(d, own.bias + j, n));
  if constexpr (with_residual)
    if (!along || t.residual != nullptr) z = hn::Add(z, get<access>(d, t.residual + i, n));
  if constexpr (kind == ZKind::active) z = activate(d, z, t.low);
  if constexpr (kind == ZKind::level) z = raised(d, z, level);
  put<access>(d, z, t.y + i, n);
}

template <class T, ZKind kind, bool with_residual, bool along>
void apply_by_runs(const ApplyArgs& args, const MapGrid& grid, std::int64_t whole, Queue& queue) {
  using Values = AlongValues<compute_t<T>>;
  const WideTag<T> d;
  const ApplyTensors<T> tensors(args, whole);
  const Values values(args.along);
  const auto piece = [&](GroupWalk& walk, std::int64_t group, std::int64_t offset, std::int64_t length) {
    const auto t =
        tensors;  // a copy, whose members stay in registers: vectors that are stored might be anything in memory
    const auto a = affine<compute_t<T>>(args.center[group], args.scale[group], shift_of(args.shift, group));
    const auto center = hn::Set(d, a.center), scale = hn::Set(d, a.scale), shift = hn::Set(d, a.shift);
    const auto level = hn::Set(d, level_of<kind, compute_t<T>>(args.floor, group));
    typename Values::Room room;
    for (std::int64_t done = 0, some = 0; done < length; done += some) {
      const std::int64_t first = offset + done;
      some = along ? min_of(tile_columns, length - done) : length;
      typename Values::Stretch own;
      if constexpr (along) own = values.at(walk, first, some, room);
      if (a.power == 1)
        for_vectors(d, some, t.streamed(first), [&](auto access, std::int64_t i, std::int64_t n) HWY_ATTR {
          apply_vector<T, kind, with_residual, along, access()>(t, first + i, n, own, i, center, scale, shift, level);
        });
      else
        for_scaled_vectors(d, some, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
          apply_vector<T, kind, with_residual, along, Access::some>(t, first + i, n, own, i, center, scale, shift,
                                                                    level, hn::Set(d, a.power));
        });
    }
  };
  grid.for_pieces(queue, values.walk(), piece, [&] {
    if (tensors.streams) flush_streams();
  });
}

template <class T, ZKind kind, bool with_residual, bool along>
void apply_by_columns(const ApplyArgs& args, const ColumnGrid& grid, std::int64_t whole, Queue& queue) {
  using C = compute_t<T>;
  const WideTag<T> d;
  const ApplyTensors<T> tensors(args, whole);
  const AlongValues<C> values(args.along);
  for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
    const auto t = tensors;  // as above
    const auto unit = grid.unit(u);
    constexpr std::int64_t size = periodic_columns<WideTag<T>>;
    alignas(64) C center[size], power[size], scale[size], shift[size], level[kind == ZKind::level ? size : 1];
    typename AlongValues<C>::Room room;
    auto walk = values.walk();
    bool scaled = false;
    for (std::int64_t j = 0; j < unit.columns; ++j) {
      const std::int64_t group = grid.group(unit.matrix, unit.column + j);
      const auto a = affine<C>(args.center[group], args.scale[group], shift_of(args.shift, group));
      center[j] = a.center, power[j] = a.power, scale[j] = a.scale, shift[j] = a.shift;
      if constexpr (kind == ZKind::level) level[j] = level_of<kind, C>(args.floor, group);
      scaled = scaled || a.power != 1;
    }
    const ColumnRuns runs(grid, unit, !along && !scaled);
    runs.repeat(d, center, scale, shift);
    if constexpr (kind == ZKind::level) runs.repeat(d, level);
    for (std::int64_t run = 0; run < runs.count; ++run) {
      const std::int64_t offset = runs.first + run * grid.width;
      typename AlongValues<C>::Stretch own;
      if constexpr (along) own = values.at(walk, offset, unit.columns, room);
      if (scaled) {
        for_scaled_vectors(d, unit.columns, [&](std::int64_t j, std::int64_t n) HWY_ATTR {
          const auto at = [&](const C* array) HWY_ATTR { return read_n(d, array + j, n); };
          const auto floor = kind == ZKind::level ? at(level) : hn::Zero(d);
          apply_vector<T, kind, with_residual, along, Access::some>(t, offset + j, n, own, j, at(center), at(scale),
                                                                    at(shift), floor, at(power));
        });
        continue;
      }
      std::int64_t j = 0;  // in the period
      for_vectors(d, runs.length, t.streamed(offset), [&](auto access, std::int64_t i, std::int64_t n) HWY_ATTR {
        const auto at = [&](const C* array) HWY_ATTR { return get<access()>(d, array + j, n); };
        const auto floor = kind == ZKind::level ? at(level) : hn::Zero(d);
        apply_vector<T, kind, with_residual, along, access()>(t, offset + i, n, own, j, at(center), at(scale),
                                                              at(shift), floor);
        j += n;
        if (j >= runs.period) j %= runs.period;
      });
    }
    if (t.streams) flush_streams();
  });
}

template <class T, ZKind kind, bool with_residual, bool along>
void apply_partition(const ApplyArgs& args, std::int64_t whole, Queue& queue) {
  const Partition p = canonical(args.partition);
  if (by_columns(p))
    apply_by_columns<T, kind, with_residual, along>(args, ColumnGrid(p), whole, queue);
  else
    apply_by_runs<T, kind, with_residual, along>(args, MapGrid(p), whole, queue);
}

void apply_target(const ApplyArgs& args, std::int64_t whole, Queue& queue) {
  if (args.partition.elements() == 0) return;
  const bool is_active = args.activation.kind != ActivationKind::identity, adds = args.residual != nullptr;
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using enum ZKind;
    if (args.floor.given())
      apply_partition<T, level, false, false>(args, whole, queue);
    else if (args.along.given)  // with either, both: fewer translations of what is rarer
      is_active || adds ? apply_partition<T, active, true, true>(args, whole, queue)
                        : apply_partition<T, plain, false, true>(args, whole, queue);
    else if (adds)
      is_active ? apply_partition<T, active, true, false>(args, whole, queue)
                : apply_partition<T, plain, true, false>(args, whole, queue);
    else
      is_active ? apply_partition<T, active, false, false>(args, whole, queue)
                : apply_partition<T, plain, false, false>(args, whole, queue);
  });
}

/// The lanes of `y` that pass the gate, as bits: NaN passes, as it does where the sign is recomputed.
template <class D>
HWY_INLINE std::uint64_t sign_bits(D d, Vec<D> y) {
  std::uint8_t bits[8] = {};
  hn::StoreMaskBits(d, hn::Not(hn::Le(y, hn::Zero(d))), bits);
  std::uint64_t word = 0;
  std::memcpy(&word, bits, 8);
  return word & ((std::uint64_t{1} << lanes(d)) - 1);
}

template <class T>
void sign_mask_of(const SignMaskArgs& args, Queue& queue) {
  const WideTag<T> d;
  const std::int64_t n = lanes(d);
  const T* y = static_cast<const T*>(args.y);
  for_tasks(queue, ceil_div(args.elements, task_values), [&](std::int64_t task) {
    const std::int64_t end = min_of(args.elements, (task + 1) * task_values);
    for (std::int64_t i = task * task_values; i < end; i += 8) {  // n is a power of two: below or a multiple of 8
      std::uint64_t word = 0;
      std::int64_t count = 0;
      while (count < max_of(8, n) && i + count < end) {
        const std::int64_t some = min_of(n, end - i - count);
        auto bits = sign_bits(d, read_some(d, y + i + count, some));
        if (some < n) bits &= (std::uint64_t{1} << some) - 1;
        word |= bits << count;
        count += some;
      }
      std::memcpy(args.mask + i / 8, &word, static_cast<std::size_t>(ceil_div(count, 8)));
      i += max_of(8, n) - 8;
    }
  });
}

void sign_mask_target(const SignMaskArgs& args, Queue& queue) {
  visit(args.dtype, [&](auto type) { sign_mask_of<typename decltype(type)::type>(args, queue); });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {
HWY_EXPORT(apply_target);
HWY_EXPORT(sign_mask_target);
void apply_part(const ApplyArgs& args, std::int64_t whole, Queue& queue) {
  HWY_DYNAMIC_DISPATCH(apply_target)(args, whole, queue);
}
void apply(const ApplyArgs& args, Queue& queue) { apply_part(args, args.partition.elements(), queue); }
void sign_mask(const SignMaskArgs& args, Queue& queue) { HWY_DYNAMIC_DISPATCH(sign_mask_target)(args, queue); }
}  // namespace allnorm::cpu
#endif
