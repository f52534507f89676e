// dx = weight * g * gain + (x - center) * power * slope + offset, and dresidual = g, g being dy behind the activation's
// gate.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/apply_grad.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/gate-inl.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// The coefficients of `width` adjacent columns, or of one group (width 1).
template <class C>
struct GradCoefficients {
  C center, power, gate_scale, gate_shift, gain, slope, offset, level;
};
template <GateKind kind, class C>
HWY_INLINE GradCoefficients<C> coefficients(const ApplyGradArgs& args, std::int64_t group) {
  const double center = args.center[group], power = power_of(args.power, group);
  const auto map = affine<C>(center, {power, args.slope[group]}, args.offset[group]);
  Affine<C> gate{};
  if constexpr (kind == GateKind::sign || kind == GateKind::level)
    gate = affine<C>(center, {power, args.gate.scale[group] / power}, shift_of(args.gate.shift, group));
  return {map.center,
          map.power,
          gate.scale,
          gate.shift,
          static_cast<C>(args.gain[group]),
          map.scale,
          map.shift,
          gate_level<kind, C>(args.gate, group)};
}

/// The tensors at the same place, and the gate's parts.
template <class T>
struct GradTensors {
  const T* x;
  const T* dy;
  T* dx;
  T* dresidual;
  Below<compute_t<T>> low;
  MaskBits mask;
  bool streams;  // dx (or dresidual alone): not where it overwrites what was just read

  GradTensors(const ApplyGradArgs& args, std::int64_t whole)
      : x(static_cast<const T*>(args.x)),
        dy(static_cast<const T*>(args.dy)),
        dx(static_cast<T*>(args.dx)),
        dresidual(static_cast<T*>(args.dresidual)),
        low(below<compute_t<T>>(args.gate.activation)),
        mask{args.gate.mask, ceil_div(args.partition.elements(), 8)},
        streams((args.dx == nullptr || args.dresidual == nullptr) && args.dx != args.dy && args.dx != args.x &&
                args.dresidual != args.dy && args.dresidual != args.x &&
                whole * static_cast<std::int64_t>(sizeof(T)) >= stream_bytes) {}
  const T* streamed(std::int64_t offset) const { return streams ? (dx != nullptr ? dx : dresidual) + offset : nullptr; }
};

/// One vector at memory offset i, or its first n values; with `along`, its gamma and beta are those at `j` of `own`.
template <class T, GateKind kind, bool along, Access access, class Own, class V, class... Power>
HWY_INLINE void grad_vector(const GradTensors<T>& t, std::int64_t i, std::int64_t n, const Own& own, std::int64_t j,
                            V center, V gate_scale, V gate_shift, V gain, V slope, V offset, V level, Power... power) {
  const WideTag<T> d;
  const auto centred = centred_of(get<access>(d, t.x + i, n), center, power...);
  const auto z = [&]() HWY_ATTR {
    const auto folded = affine_of(centred, gate_scale, gate_shift);
    if constexpr (along)
      return affine_of(folded, get<access>(d, own.weight + j, n), get<access>(d, own.bias + j, n));
    else
      return folded;
  };
  const auto g = gated<kind>(d, get<access>(d, t.dy + i, n), z, t.low, t.mask, i, n, level);
  if (t.dx != nullptr) {
    auto weighted = g;
    if constexpr (along) weighted = hn::Mul(g, get<access>(d, own.weight + j, n));
    put<access>(d, hn::MulAdd(weighted, gain, hn::MulAdd(centred, slope, offset)), t.dx + i, n);
  }
  if (t.dresidual != nullptr) put<access>(d, g, t.dresidual + i, n);
}

template <class T, GateKind kind, bool along>
void apply_grad_by_runs(const ApplyGradArgs& args, const MapGrid& grid, std::int64_t whole, Queue& queue) {
  using C = compute_t<T>;
  const WideTag<T> d;
  const GradTensors<T> tensors(args, whole);
  const AlongValues<C> values(args.along);
  const auto piece = [&](GroupWalk& walk, std::int64_t group, std::int64_t from, std::int64_t length) {
    const auto t =
        tensors;  // a copy, whose members stay in registers: vectors that are stored might be anything in memory
    const auto k = coefficients<kind, C>(args, group);
    const auto center = hn::Set(d, k.center), gate_scale = hn::Set(d, k.gate_scale);
    const auto gate_shift = hn::Set(d, k.gate_shift), gain = hn::Set(d, k.gain);
    const auto slope = hn::Set(d, k.slope), offset = hn::Set(d, k.offset), level = hn::Set(d, k.level);
    typename AlongValues<C>::Room room;
    for (std::int64_t done = 0, some = 0; done < length; done += some) {
      const std::int64_t first = from + done;
      some = along ? min_of(tile_columns, length - done) : length;
      typename AlongValues<C>::Stretch own;
      if constexpr (along) own = values.at(walk, first, some, room);
      if (k.power == 1)
        for_vectors(d, some, t.streamed(first), [&](auto access, std::int64_t i, std::int64_t n) HWY_ATTR {
          grad_vector<T, kind, along, access()>(t, first + i, n, own, i, center, gate_scale, gate_shift, gain, slope,
                                                offset, level);
        });
      else
        for_scaled_vectors(d, some, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
          grad_vector<T, kind, along, Access::some>(t, first + i, n, own, i, center, gate_scale, gate_shift, gain,
                                                    slope, offset, level, hn::Set(d, k.power));
        });
    }
  };
  grid.for_pieces(queue, values.walk(), piece, [&] {
    if (tensors.streams) flush_streams();
  });
}

template <class T, GateKind kind, bool along>
void apply_grad_by_columns(const ApplyGradArgs& args, const ColumnGrid& grid, std::int64_t whole, Queue& queue) {
  using C = compute_t<T>;
  const WideTag<T> d;
  const GradTensors<T> tensors(args, whole);
  const AlongValues<C> values(args.along);
  for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
    const auto t = tensors;  // as above
    const auto unit = grid.unit(u);
    constexpr std::int64_t size = periodic_columns<WideTag<T>>;
    alignas(64) C center[size], power[size], gate_scale[size], gate_shift[size], gain[size], slope[size], offset[size];
    alignas(64) C level[kind == GateKind::level ? size : 1];
    typename AlongValues<C>::Room room;
    auto walk = values.walk();
    bool scaled = false;
    for (std::int64_t j = 0; j < unit.columns; ++j) {
      const auto k = coefficients<kind, C>(args, grid.group(unit.matrix, unit.column + j));
      center[j] = k.center, power[j] = k.power, gate_scale[j] = k.gate_scale, gate_shift[j] = k.gate_shift;
      gain[j] = k.gain, slope[j] = k.slope, offset[j] = k.offset;
      if constexpr (kind == GateKind::level) level[j] = k.level;
      scaled = scaled || k.power != 1;
    }
    const ColumnRuns runs(grid, unit, !along && !scaled);
    runs.repeat(d, center, gate_scale, gate_shift, gain, slope, offset);
    if constexpr (kind == GateKind::level) runs.repeat(d, level);
    for (std::int64_t run = 0; run < runs.count; ++run) {
      const std::int64_t first = runs.first + run * grid.width;
      typename AlongValues<C>::Stretch own;
      if constexpr (along) own = values.at(walk, first, unit.columns, room);
      if (scaled) {
        for_scaled_vectors(d, unit.columns, [&](std::int64_t j, std::int64_t n) HWY_ATTR {
          const auto at = [&](const C* array) HWY_ATTR { return read_n(d, array + j, n); };
          const auto floor = kind == GateKind::level ? at(level) : hn::Zero(d);
          grad_vector<T, kind, along, Access::some>(t, first + j, n, own, j, at(center), at(gate_scale), at(gate_shift),
                                                    at(gain), at(slope), at(offset), floor, at(power));
        });
        continue;
      }
      std::int64_t j = 0;  // in the period
      for_vectors(d, runs.length, t.streamed(first), [&](auto access, std::int64_t i, std::int64_t n) HWY_ATTR {
        const auto at = [&](const C* array) HWY_ATTR { return get<access()>(d, array + j, n); };
        const auto floor = kind == GateKind::level ? at(level) : hn::Zero(d);
        grad_vector<T, kind, along, access()>(t, first + i, n, own, j, at(center), at(gate_scale), at(gate_shift),
                                              at(gain), at(slope), at(offset), floor);
        j += n;
        if (j >= runs.period) j %= runs.period;
      });
    }
    if (t.streams) flush_streams();
  });
}

template <class T, GateKind kind, bool along>
void apply_grad_partition(const ApplyGradArgs& args, std::int64_t whole, Queue& queue) {
  const Partition p = canonical(args.partition);
  if (by_columns(p))
    apply_grad_by_columns<T, kind, along>(args, ColumnGrid(p), whole, queue);
  else
    apply_grad_by_runs<T, kind, along>(args, MapGrid(p), whole, queue);
}

void apply_grad_target(const ApplyGradArgs& args, std::int64_t whole, Queue& queue) {
  if (args.partition.elements() == 0) return;
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    visit_gate(kind_of(args.gate), [&](auto kind) {
      if constexpr (kind() != GateKind::level)  // with which gamma is folded
        if (args.along.given) return apply_grad_partition<T, kind(), true>(args, whole, queue);
      apply_grad_partition<T, kind(), false>(args, whole, queue);
    });
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {
HWY_EXPORT(apply_grad_target);
void apply_grad_part(const ApplyGradArgs& args, std::int64_t whole, Queue& queue) {
  HWY_DYNAMIC_DISPATCH(apply_grad_target)(args, whole, queue);
}
void apply_grad(const ApplyGradArgs& args, Queue& queue) { apply_grad_part(args, args.partition.elements(), queue); }
}  // namespace allnorm::cpu
#endif
