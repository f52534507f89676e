// Local Response Normalization, tile by tile: the squares of a tile's values stand in a buffer between zeros for the
// channels that are not there, so that a window is the same sum everywhere. In channels-first order a tile has all
// channels of some positions, in rows of positions; in channels-last order the channels of one position, in one row.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/neighbours.cpp"
#include <hwy/foreach_target.h>

#include <hwy/contrib/math/math-inl.h>

#include <optional>
#include <span>
#include <vector>

#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/vectors-inl.hpp"
#include "kernels/neighbours.hpp"

#ifndef ALLNORM_KERNELS_CPU_NEIGHBOURS
#define ALLNORM_KERNELS_CPU_NEIGHBOURS
namespace allnorm::cpu {

/// How a tensor is cut into tiles, and how these lie in memory and in buffers.
struct WindowGrid {
  std::int64_t rows = 0, columns = 0;   // of a tile, at most
  std::int64_t stride = 0;              // of its rows in memory
  std::int64_t pitch = 0;               // of its rows in a buffer: whole vectors
  std::int64_t step = 0;                // from channel to channel in a buffer
  std::int64_t width = 0, tiles = 0;    // values of a row in memory, and tiles that they are cut into
  std::int64_t matrices = 0, span = 0;  // of `span` values each

  template <class Args>
  WindowGrid(const Args& a, std::int64_t vector) noexcept {
    const bool first = a.order == Order::channels_first;
    const std::int64_t fitting = buffer_values / max_of(1, a.channels + a.window.size());
    rows = first ? a.channels : 1;
    width = stride = first ? a.space : a.channels;
    columns = first ? max_of(vector, min_of(most_columns, fitting / vector * vector)) : a.channels;
    pitch = ceil_div(columns, vector) * vector;
    step = first ? pitch : 1;
    tiles = first ? ceil_div(a.space, columns) : 1;
    matrices = first ? a.samples : a.samples * a.space;
    span = a.channels * (first ? a.space : 1);
  }
  std::int64_t units() const noexcept { return span == 0 ? 0 : matrices * tiles; }
  std::int64_t units_per_task() const noexcept { return max_of(1, task_values / max_of(1, rows * columns)); }

  static constexpr std::int64_t most_columns = 256, buffer_values = 1 << 14;  // a buffer stays in the nearest caches
};

}  // namespace allnorm::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// Values in the type C that the kernel computes in: the compute type of T, or double.
template <class T, class C>
struct Values {
  static constexpr bool widens = !std::is_same_v<C, compute_t<T>>;
  using Tag = hn::ScalableTag<C>;

  template <Access access>
  static HWY_INLINE Vec<Tag> get(const T* p, std::int64_t n) {
    if constexpr (widens)
      return to_double(HWY_NAMESPACE::get<access>(SumTag<T>(), p, n));
    else
      return HWY_NAMESPACE::get<access>(Tag(), p, n);
  }
  template <Access access>
  static HWY_INLINE void put(Vec<Tag> value, T* p, std::int64_t n) {
    if constexpr (widens)
      HWY_NAMESPACE::put<access>(SumTag<T>(), hn::DemoteTo(SumTag<T>(), value), p, n);
    else
      HWY_NAMESPACE::put<access>(Tag(), value, p, n);
  }
};

/// What windows are made of in one task: its buffers, and the constants in the type C.
template <class T, class C>
class Windows {
  using Tag = hn::ScalableTag<C>;
  using Own = Values<T, C>;
  static constexpr Tag d{};

 public:
  Windows(const Neighbours& window, const WindowGrid& grid, bool backward)
      : w_(window),
        grid_(grid),
        limit_(static_cast<C>(formulas::narrow_square(window))),
        squares_(room(window.behind, window.ahead)),
        terms_(backward ? room(window.ahead, window.behind) : std::vector<C>()),
        direct_(backward ? room(0, 0) : std::vector<C>()) {}

  /// The tile of so many columns at `offset`. False, and nothing is written, where C has not the range for its values.
  bool forward(const T* x, T* y, std::int64_t offset, std::int64_t columns) {
    if (!fits(fill(x + offset, columns))) return false;
    each(offset, columns, [&](auto access, std::int64_t at, std::int64_t i, std::int64_t n) HWY_ATTR {
      const auto value = Own::template get<access()>(x + at, n);
      Own::template put<access()>(hn::Div(value, raised(power(i))), y + at, n);
    });
    return true;
  }

  /// With h = dy P^-beta and w = sqrt(a / P), dx_j = h_j - 2 beta x_j * (sum of h x w w): |x w| is at most 1. What is
  /// left of the sum is in range as a multiple of the largest x.
  bool backward(const T* x, const T* dy, T* dx, std::int64_t offset, std::int64_t columns) {
    const C most = fill(x + offset, columns);
    if (!fits(most)) return false;
    const C scale = scale_of(most);
    const auto root_a = hn::Set(d, static_cast<C>(std::sqrt(w_.a))), scales = hn::Set(d, scale);
    C* const terms = terms_.data() + w_.ahead * grid_.step;
    each(offset, columns, [&](auto access, std::int64_t at, std::int64_t i, std::int64_t n) HWY_ATTR {
      const auto p = power(i), h = hn::Div(Own::template get<access()>(dy + at, n), raised(p));
      const auto share = hn::Div(root_a, hn::Sqrt(p));
      const auto value = Own::template get<access()>(x + at, n);
      const auto term = hn::Mul(hn::Mul(h, hn::Mul(value, share)), hn::Mul(scales, share));
      hn::StoreU(access() == Access::some ? first_n(d, term, n) : term, d, terms + i);
      hn::StoreU(h, d, direct_.data() + i);
    });
    const auto factor = hn::Set(d, static_cast<C>(-2 * w_.beta) / scale);
    each(offset, columns, [&](auto access, std::int64_t at, std::int64_t i, std::int64_t n) HWY_ATTR {
      const auto sum = sum_of(terms_.data() + i), value = Own::template get<access()>(x + at, n);
      const auto h = hn::LoadU(d, direct_.data() + i);
      Own::template put<access()>(hn::MulAdd(hn::Mul(value, factor), sum, h), dx + at, n);
    });
    return true;
  }

 private:
  std::vector<C> room(std::int64_t before, std::int64_t after) const {
    return std::vector<C>(
        static_cast<std::size_t>((before + after) * grid_.step + grid_.rows * grid_.pitch + lanes(d)));
  }
  // Of the largest square: about the largest value, where the type alone does not hold sums without it.
  static C scale_of(C most) {
    return std::is_same_v<C, double> && most > 1 && std::isfinite(most) ? std::sqrt(most) : C{1};
  }
  bool fits(C most) const { return std::is_same_v<C, double> || most <= limit_; }

  /// Calls body(access, offset in memory, offset in a buffer without zeros before it, values) for all vectors.
  template <class Body>
  HWY_INLINE void each(std::int64_t offset, std::int64_t columns, const Body& body) const {
    for (std::int64_t row = 0; row < grid_.rows; ++row)
      for_vectors(d, columns, static_cast<const C*>(nullptr),
                  [&](auto access, std::int64_t i, std::int64_t n)
                      HWY_ATTR { body(access, offset + row * grid_.stride + i, row * grid_.pitch + i, n); });
  }
  /// Fills the squares; the largest of them, of those that are numbers.
  C fill(const T* x, std::int64_t columns) {
    auto most = hn::Zero(d);
    C* const squares = squares_.data() + w_.behind * grid_.step;
    each(0, columns, [&](auto access, std::int64_t at, std::int64_t i, std::int64_t n) HWY_ATTR {
      const auto value = Own::template get<access()>(x + at, n);
      auto square = hn::Mul(value, value);
      if constexpr (access() == Access::some) square = first_n(d, square, n);
      hn::StoreU(square, d, squares + i);
      most = hn::Max(square, most);
    });
    return hn::GetLane(hn::MaxOfLanes(d, most));
  }
  /// The window's sum, `from` its first value.
  HWY_INLINE Vec<Tag> sum_of(const C* from) const {
    const std::int64_t size = w_.size();
    auto sum = hn::LoadU(d, from);
    for (std::int64_t j = 1; j < size; ++j) sum = hn::Add(sum, hn::LoadU(d, from + j * grid_.step));
    return sum;
  }
  HWY_INLINE Vec<Tag> power(std::int64_t i) const {
    return hn::MulAdd(hn::Set(d, static_cast<C>(w_.a)), sum_of(squares_.data() + i), hn::Set(d, static_cast<C>(w_.k)));
  }
  /// As formulas::raised; a power of a double lane by lane.
  HWY_INLINE Vec<Tag> raised(Vec<Tag> p) const {
    if (formulas::is_of_roots(w_.beta)) {
      const auto root = hn::Sqrt(p);
      return hn::Mul(root, hn::Sqrt(root));
    }
    C values[hn::MaxLanes(Tag())];
    hn::StoreU(p, d, values);
    if constexpr (std::is_same_v<C, double>) {
      for (double& value : std::span(values, static_cast<std::size_t>(lanes(d))))
        value = formulas::raised(value, w_.beta);
    } else {
      for (std::int64_t i = 0; i < lanes(d); i += lanes(DoubleTag())) power_in_double(values + i);
    }
    return hn::LoadU(d, values);
  }
  /// So many values as a vector of doubles has, whose logarithm and exponential are exact to what f32 has of digits. A
  /// NaN, of which these make something, stays one.
  HWY_NOINLINE void power_in_double(C* values) const {
    const DoubleTag dd;
    const SumTag<C> some;
    const auto p = hn::LoadU(some, values);
    const auto power = hn::Exp(dd, hn::Mul(hn::Set(dd, w_.beta), hn::Log(dd, to_double(p))));
    hn::StoreU(hn::IfThenElse(hn::IsNaN(p), p, hn::DemoteTo(some, power)), some, values);
  }

  const Neighbours w_;
  const WindowGrid grid_;
  const C limit_;
  std::vector<C> squares_, terms_, direct_;
};

/// Calls run(windows, offset, columns) for all tiles, in double for those to which it says false.
template <class T, class Args, class Run>
void for_windows(const Args& args, bool backward, Queue& queue, const Run& run) {
  using C = compute_t<T>;
  const WindowGrid grid(args, lanes(hn::ScalableTag<C>()));
  for_tasks(queue, ceil_div(grid.units(), grid.units_per_task()), [&](std::int64_t task) {
    Windows<T, C> windows(args.window, grid, backward);
    std::optional<Windows<T, double>> wide;
    const std::int64_t end = min_of(grid.units(), (task + 1) * grid.units_per_task());
    for (std::int64_t unit = task * grid.units_per_task(); unit < end; ++unit) {
      const std::int64_t first = unit % grid.tiles * grid.columns, columns = min_of(grid.columns, grid.width - first);
      const std::int64_t offset = unit / grid.tiles * grid.span + first;
      if (run(windows, offset, columns)) continue;
      if (!wide) wide.emplace(args.window, grid, backward);
      run(*wide, offset, columns);
    }
  });
}

void neighbours_target(const NeighboursArgs& args, Queue& queue) {
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    for_windows<T>(args, false, queue, [&](auto& windows, std::int64_t offset, std::int64_t columns) {
      return windows.forward(static_cast<const T*>(args.x), static_cast<T*>(args.y), offset, columns);
    });
  });
}

void neighbours_grad_target(const NeighboursGradArgs& args, Queue& queue) {
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    for_windows<T>(args, true, queue, [&](auto& windows, std::int64_t offset, std::int64_t columns) {
      return windows.backward(static_cast<const T*>(args.x), static_cast<const T*>(args.dy), static_cast<T*>(args.dx),
                              offset, columns);
    });
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {
HWY_EXPORT(neighbours_target);
HWY_EXPORT(neighbours_grad_target);
void neighbours(const NeighboursArgs& args, Queue& queue) { HWY_DYNAMIC_DISPATCH(neighbours_target)(args, queue); }
void neighbours_grad(const NeighboursGradArgs& args, Queue& queue) {
  HWY_DYNAMIC_DISPATCH(neighbours_grad_target)(args, queue);
}
}  // namespace allnorm::cpu
#endif
