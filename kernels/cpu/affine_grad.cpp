// The gradients of gamma and beta that lie along groups: sum of g * normalized x and of g, over the values that share
// them, g being dy behind the activation's gate.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/affine_grad.cpp"
#include <hwy/foreach_target.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/grad_sums-inl.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// Coefficients of the norm: of rows that lie in one of its groups each, or of the values of one row.
template <class C, std::int64_t size>
struct NormCoefficients {
  alignas(64) double center[size], scale[size], shift[size];
  alignas(64) C gate_center[size], gate_power[size], gate_scale[size], gate_shift[size];

  template <GateKind kind>
  void set(std::int64_t at, const AffineGradArgs& args, std::int64_t group) {
    const auto gate = gate_affine<kind, C>(args.center[group], args.gate, group);
    center[at] = args.center[group], scale[at] = args.gate.scale[group], shift[at] = shift_of(args.gate.shift, group);
    gate_center[at] = gate.center, gate_power[at] = gate.power, gate_scale[at] = gate.scale,
    gate_shift[at] = gate.shift;
  }
  template <class D>
  HWY_INLINE static Vec<D> get(D d, const hn::TFromD<D>* values, std::int64_t row, std::int64_t j) {
    if constexpr (size == rows_per_pass)
      return hn::Set(d, values[row]);
    else
      return hn::Load(d, values + j);
  }
};

/// Adds rows of `columns` values, `width` apart, the first at memory offset `first`.
template <GateKind kind, bool along, class T, class Coefficients, class Own>
HWY_INLINE void add_rows(const GradInput<T> in, const Coefficients& k, const Own* own, std::int64_t first,
                         std::int64_t rows, std::int64_t columns, std::int64_t width, double* dweight, double* dbias) {
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  for (std::int64_t j = 0; j < columns; j += n) {
    const std::int64_t some = columns - j;
    auto w = hn::Load(dd, dweight + j), b = hn::Load(dd, dbias + j);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t i = first + r * width + j;
      const auto x = read_some(d, in.x + i, some), dy = read_some(d, in.dy + i, some);
      const auto centred = centred_of(x, k.get(d, k.gate_center, r, j), k.get(d, k.gate_power, r, j));
      const auto g =
          to_double(gradient_of<kind, along>(d, dy, centred, k.get(d, k.gate_scale, r, j), k.get(d, k.gate_shift, r, j),
                                             hn::Zero(d), in, i, own[r], j, min_of(n, some)));
      const auto normalized = affine_of(hn::Sub(to_double(x), k.get(dd, k.center, r, j)), k.get(dd, k.scale, r, j),
                                        k.get(dd, k.shift, r, j));
      w = hn::MulAdd(g, normalized, w), b = hn::Add(b, g);
    }
    hn::Store(w, dd, dweight + j), hn::Store(b, dd, dbias + j);
  }
}

/// One unit of the columns of gamma: dweight and dbias (unit.columns) over its rows; `continues`: added to what they
/// are.
template <class T, GateKind kind, bool along>
void affine_grad_tile(const AffineGradArgs& args, const GradInput<T>& in, const AlongValues<compute_t<T>>& values,
                      const ColumnGrid& grid, const ColumnGrid::Unit& unit, bool continues, double* dweight,
                      double* dbias) {
  using C = compute_t<T>;
  using Values = AlongValues<C>;
  alignas(64) double acc_weight[tile_columns] = {}, acc_bias[tile_columns] = {};
  if (continues) std::copy_n(dweight, unit.columns, acc_weight), std::copy_n(dbias, unit.columns, acc_bias);
  GroupWalk groups(args.norm);
  auto walk = values.walk();
  typename Values::Room rooms[along ? rows_per_pass : 1];
  typename Values::Stretch own[rows_per_pass];
  NormCoefficients<C, rows_per_pass> of_rows;
  NormCoefficients<C, tile_columns> of_values;
  const std::int64_t columns = unit.columns;
  for (std::int64_t row = 0; row < unit.rows;) {
    const std::int64_t first = (unit.matrix * grid.rows + unit.row + row) * grid.width + unit.column;
    std::int64_t count = 0;  // rows that lie in one group each
    for (; count < min_of(rows_per_pass, unit.rows - row); ++count) {
      groups.seek(first + count * grid.width);
      if (columns > 1 && (groups.groups_follow() || groups.left() < columns)) break;
      of_rows.template set<kind>(count, args, groups.group());
      groups.advance(columns);
    }
    const std::int64_t rows = max_of(1, count);
    if constexpr (along)
      for (std::int64_t r = 0; r < rows; ++r) own[r] = values.at(walk, first + r * grid.width, columns, rooms[r]);
    if (count > 0) {
      add_rows<kind, along>(in, of_rows, own, first, rows, columns, grid.width, acc_weight, acc_bias);
    } else {
      for (std::int64_t j = 0; j < columns; ++j) of_values.template set<kind>(j, args, args.norm.group_of(first + j));
      add_rows<kind, along>(in, of_values, own, first, rows, columns, grid.width, acc_weight, acc_bias);
    }
    row += rows;
  }
  std::copy_n(acc_weight, columns, dweight);
  std::copy_n(acc_bias, columns, dbias);
}

template <class T, GateKind kind, bool along>
void affine_grad_of(const AffineGradArgs& args, const Partition& p, Queue& queue) {
  const GradInput<T> in(args, p);
  const AlongValues<compute_t<T>> values(args.along);
  const ColumnGrid grid = along_grid(p);
  sum_columns<2>(grid, {args.dweight, args.dbias}, queue, [&](const ColumnGrid::Unit& unit, const SumsOf<2>& sums) {
    affine_grad_tile<T, kind, along>(args, in, values, grid, unit, false, sums[0], sums[1]);
  });
}

template <class T, GateKind kind, bool along>
void affine_grad_rows_of(const AffineGradArgs& args, const Partition& p, double* sums) {
  const GradInput<T> in(args, p);
  const AlongValues<compute_t<T>> values(args.along);
  const ColumnGrid grid(p);
  for (std::int64_t column = 0; column < grid.width; column += grid.tile) {
    const ColumnGrid::Unit unit{0, 0, 0, grid.rows, column, min_of(grid.tile, grid.width - column)};
    affine_grad_tile<T, kind, along>(args, in, values, grid, unit, true, sums + column, sums + grid.width + column);
  }
}

/// Where the gradients of gammas that every value has its own of go, as long as x; null: not asked for.
template <class C>
struct GradMaps {
  C *weight, *bias;
  bool streams;  // both: where their vectors are aligned alike

  GradMaps(const ParameterGrad& dweight, const ParameterGrad& dbias, std::int64_t whole)
      : weight(static_cast<C*>(dweight.data)), bias(static_cast<C*>(dbias.data)) {
    const auto apart = reinterpret_cast<std::uintptr_t>(weight) - reinterpret_cast<std::uintptr_t>(bias);
    const bool alike = weight == nullptr || bias == nullptr || apart % 64 == 0;
    streams = alike && whole * static_cast<std::int64_t>(sizeof(C)) >= stream_bytes;
  }
  const C* streamed(std::int64_t offset) const {
    return streams ? (weight != nullptr ? weight : bias) + offset : nullptr;
  }
};

/// Values from memory offset `first` on whose coefficients are of one group, or (follow) of groups that follow each
/// other. The same arithmetic as that of sums over one row.
template <GateKind kind, bool along, bool follow, class T, class Gates, class Own>
HWY_INLINE void map_stretch(const AffineGradArgs& args, const GradInput<T> in, const Gates& gates, std::int64_t group,
                            const Own& own, std::int64_t first, std::int64_t length, const GradMaps<compute_t<T>> to) {
  const SumTag<T> d;
  const DoubleTag dd;
  const auto narrowed = [](Vec<DoubleTag> v) HWY_ATTR {
    if constexpr (std::is_same_v<compute_t<T>, double>)
      return v;
    else
      return hn::DemoteTo(SumTag<T>(), v);
  };
  // Taken before the loop: vectors that are stored might be anything in memory.
  const double *const centers = args.center, *const scales = args.gate.scale, *const shifts = args.gate.shift;
  const auto of_group = [group](auto tag, const auto* values) HWY_ATTR {
    return follow || values == nullptr ? hn::Zero(tag) : hn::Set(tag, values[group]);
  };
  const auto exact = of_group(dd, centers), factor = of_group(dd, scales), offset = of_group(dd, shifts);
  const auto gate_center = of_group(d, gates.center), gate_power = of_group(d, gates.power);
  const auto gate_scale = of_group(d, gates.scale), gate_shift = of_group(d, gates.shift);
  const auto zero = hn::Zero(dd);
  for_vectors(d, length, to.streamed(first), [&](auto access, std::int64_t j, std::int64_t n) HWY_ATTR {
    const auto of = [&](auto tag, const auto* values, auto same) HWY_ATTR {
      if constexpr (follow)
        return values == nullptr ? same : get<access()>(tag, values + group + j, n);
      else
        return same;
    };
    const std::int64_t i = first + j;
    const auto x = get<access()>(d, in.x + i, n), dy = get<access()>(d, in.dy + i, n);
    auto centred = x, scale = x, shift = x;  // read where z is the gate
    if constexpr (kind == GateKind::sign)
      centred = centred_of(x, of(d, gates.center, gate_center), of(d, gates.power, gate_power)),
      scale = of(d, gates.scale, gate_scale), shift = of(d, gates.shift, gate_shift);
    const auto g = to_double(gradient_of<kind, along>(d, dy, centred, scale, shift, hn::Zero(d), in, i, own, j, n));
    const auto normalized =
        affine_of(hn::Sub(to_double(x), of(dd, centers, exact)), of(dd, scales, factor), of(dd, shifts, offset));
    if (to.weight != nullptr) put<access()>(d, narrowed(hn::MulAdd(g, normalized, zero)), to.weight + i, n);
    if (to.bias != nullptr) put<access()>(d, narrowed(hn::Add(zero, g)), to.bias + i, n);
  });
}

/// The gate's coefficients of all groups.
template <class C>
struct GateCoefficients {
  C *center = nullptr, *power = nullptr, *scale = nullptr, *shift = nullptr;  // (G), where the gate reads them

  template <GateKind kind>
  void take(const AffineGradArgs& args, Queue& queue) {
    if constexpr (kind == GateKind::sign) {
      const std::int64_t size = args.norm.groups();
      own_ = Buffer<C>(static_cast<std::size_t>(4 * size), queue, Fill::none);
      center = own_.data(), power = center + size, scale = power + size, shift = scale + size;
      for (std::int64_t g = 0; g < size; ++g) {
        const auto gate = gate_affine<kind, C>(args.center[g], args.gate, g);
        center[g] = gate.center, power[g] = gate.power, scale[g] = gate.scale, shift[g] = gate.shift;
      }
    }
  }

 private:
  Buffer<C> own_{};
};

template <class T, GateKind kind, bool along>
void affine_grad_map(const AffineGradArgs& args, const GradMaps<compute_t<T>>& to, Queue& queue) {
  using Values = AlongValues<compute_t<T>>;
  const GradInput<T> in(args, args.norm);
  const Values values(args.along);
  GateCoefficients<compute_t<T>> gates;
  gates.template take<kind>(args, queue);
  const std::int64_t elements = args.norm.elements(), task = task_values;
  for_items(queue, ceil_div(elements, task), 1, [&](std::int64_t item) {
    GroupWalk groups(args.norm);
    auto walk = values.walk();
    typename Values::Room room;
    const std::int64_t end = min_of(elements, (item + 1) * task);
    for (std::int64_t i = item * task, some = 0; i < end; i += some) {
      groups.seek(i);
      some = min_of(min_of(groups.left(), end - i), tile_columns);
      typename Values::Stretch own;
      if constexpr (along) own = values.at(walk, i, some, room);
      if (groups.groups_follow())
        map_stretch<kind, along, true>(args, in, gates, groups.group(), own, i, some, to);
      else
        map_stretch<kind, along, false>(args, in, gates, groups.group(), own, i, some, to);
    }
    if (to.streams) flush_streams();
  });
}

bool affine_grad_values_target(const AffineGradArgs& args, const ParameterGrad& dweight, const ParameterGrad& dbias,
                               std::int64_t whole, Queue& queue) {
  return visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using C = compute_t<T>;
    for (const ParameterGrad* grad : {&dweight, &dbias})
      if (grad->data != nullptr && grad->dtype != dtype_of<C>()) return false;
    const GradMaps<C> to(dweight, dbias, whole);
    visit_gate(kind_of(args.gate), [&](auto kind) {
      if constexpr (kind() == GateKind::sign)
        if (args.along.given) return affine_grad_map<T, kind(), true>(args, to, queue);
      if constexpr (kind() != GateKind::level) affine_grad_map<T, kind(), false>(args, to, queue);
    });
    return true;
  });
}

/// Calls f(type, kind, along) with how x is read, g is made, and whether gamma and beta are read for that: they matter
/// to the sign alone, and none of them is along where there is a level.
template <class F>
void visit_along(const AffineGradArgs& args, const F& f) {
  visit(args.dtype, [&](auto type) {
    visit_gate(kind_of(args.gate), [&](auto kind) {
      if constexpr (kind() == GateKind::sign)
        if (args.along.given) return f(type, kind, std::true_type());
      if constexpr (kind() != GateKind::level) f(type, kind, std::false_type());
    });
  });
}

void affine_grad_target(const AffineGradArgs& args, Queue& queue) {
  const Partition p = canonical(args.along.affine);
  if (p.elements() == 0) {
    std::fill_n(args.dweight, args.along.affine.groups(), 0.0);
    std::fill_n(args.dbias, args.along.affine.groups(), 0.0);
    return;
  }
  visit_along(args, [&](auto type, auto kind, auto along) {
    affine_grad_of<typename decltype(type)::type, kind(), along()>(args, p, queue);
  });
}

void affine_grad_rows_target(const AffineGradArgs& args, double* sums) {
  const Partition p = canonical(args.along.affine);
  visit_along(args, [&](auto type, auto kind, auto along) {
    affine_grad_rows_of<typename decltype(type)::type, kind(), along()>(args, p, sums);
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {
HWY_EXPORT(affine_grad_target);
void affine_grad(const AffineGradArgs& args, Queue& queue) { HWY_DYNAMIC_DISPATCH(affine_grad_target)(args, queue); }
HWY_EXPORT(affine_grad_rows_target);
void affine_grad_rows(const AffineGradArgs& args, double* sums) {
  HWY_DYNAMIC_DISPATCH(affine_grad_rows_target)(args, sums);
}
HWY_EXPORT(affine_grad_values_target);
bool affine_grad_values(const AffineGradArgs& args, const ParameterGrad& dweight, const ParameterGrad& dbias,
                        std::int64_t whole, Queue& queue) {
  return args.along.affine.group_size() == 1 &&
         HWY_DYNAMIC_DISPATCH(affine_grad_values_target)(args, dweight, dbias, whole, queue);
}
}  // namespace allnorm::cpu
#endif
