// The backward reductions of rows whose columns have a gamma and beta each, in one read: per row the sums of weight * g
// and of weight * g * (x - center), per column those of g * normalized x and of g. In the order, and so to the bit, of
// moments_grad.cpp and affine_grad.cpp.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rows_grad.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/frames.hpp"
#include "kernels/cpu/grad_sums-inl.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// What the values of a row share.
template <class C>
struct RowCoefficients {
  double center, scale, shift;
  Affine<C> gate;

  template <GateKind kind>
  static RowCoefficients of(const AffineGradArgs& args, std::int64_t row) {
    return {args.center[row], args.gate.scale[row], shift_of(args.gate.shift, row),
            gate_affine<kind, C>(args.center[row], args.gate, row)};
  }
};

/// Where two rows' sums go, or one's.
struct RowSums {
  GradSums rows[2];
  double *weight, *bias;  // (columns)
};

/// Adds `length` values of a row, from memory offset `first` on, and as many of the row that begins `width` values
/// later; own: gamma and beta of these columns. Coefficients are copies, which no store to the sums changes.
template <GateKind kind, bool pair, class T, class Own>
HWY_INLINE void add_rows(const GradInput<T> in, const RowCoefficients<compute_t<T>> upper,
                         const RowCoefficients<compute_t<T>> lower, const Own own, std::int64_t first,
                         std::int64_t width, std::int64_t length, RowSums& to) {
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  using Whole = std::integral_constant<Access, Access::whole>;
  using Some = std::integral_constant<Access, Access::some>;
  double *const weight_sums = to.weight, *const bias_sums = to.bias;
  const auto add_row = [&](auto access, const auto& k, std::int64_t i, std::int64_t j, std::int64_t some, auto weight,
                           auto& s, auto& p, auto& to_weight, auto& to_bias) HWY_ATTR ALLNORM_INLINED {
    const auto x = get<access()>(d, in.x + i, some), dy = get<access()>(d, in.dy + i, some);
    const auto centred = centred_of(x, hn::Set(d, k.gate.center), hn::Set(d, k.gate.power));
    const auto g = to_double(gradient_of<kind, true>(d, dy, centred, hn::Set(d, k.gate.scale), hn::Set(d, k.gate.shift),
                                                     hn::Zero(d), in, i, own, j, some));
    const auto exact = hn::Sub(to_double(x), hn::Set(dd, k.center));
    const auto normalized = affine_of(exact, hn::Set(dd, k.scale), hn::Set(dd, k.shift));
    to_weight = hn::MulAdd(g, normalized, to_weight), to_bias = hn::Add(to_bias, g);
    auto weighted = hn::Mul(g, weight), distance = exact;
    if constexpr (access() == Access::some)
      weighted = first_n(dd, weighted, some), distance = first_n(dd, distance, some);
    s = hn::Add(s, weighted), p = hn::MulAdd(weighted, distance, p);
  };
  const auto add = [&](auto access, std::int64_t j, std::int64_t some, auto& s0, auto& p0, auto& s1,
                       auto& p1) HWY_ATTR {
    const auto weight = to_double(get<access()>(d, own.weight + j, some));
    auto to_weight = get<access()>(dd, weight_sums + j, some), to_bias = get<access()>(dd, bias_sums + j, some);
    add_row(access, upper, first + j, j, some, weight, s0, p0, to_weight, to_bias);
    if constexpr (pair) add_row(access, lower, first + width + j, j, some, weight, s1, p1, to_weight, to_bias);
    put<access()>(dd, to_weight, weight_sums + j, some);
    put<access()>(dd, to_bias, bias_sums + j, some);
  };
  // Of each row those of even vectors and of odd ones.
  auto s00 = hn::Zero(dd), s01 = s00, s10 = s00, s11 = s00, p00 = s00, p01 = s00, p10 = s00, p11 = s00;
  std::int64_t j = 0;
  for (; j + 2 * n <= length; j += 2 * n) {
    add(Whole(), j, n, s00, p00, s10, p10);
    add(Whole(), j + n, n, s01, p01, s11, p11);
  }
  for (; j + n <= length; j += n) add(Whole(), j, n, s00, p00, s10, p10);
  if (j < length) add(Some(), j, length - j, s01, p01, s11, p11);
  to.rows[0].add({sum_of_lanes(hn::Add(s00, s01)), sum_of_lanes(hn::Add(p00, p01))});
  if constexpr (pair) to.rows[1].add({sum_of_lanes(hn::Add(s10, s11)), sum_of_lanes(hn::Add(p10, p11))});
}

template <class T, GateKind kind>
void rows_grad_of(const AffineGradArgs& args, const typename AlongValues<compute_t<T>>::Stretch& along,
                  const RunGrid& grid, double* sum_g, double* sum_gx, double* sums) {
  using Coefficients = RowCoefficients<compute_t<T>>;
  const GradInput<T> in(args, args.norm);
  const std::int64_t rows = grid.p.groups(), width = grid.p.reduce1;
  for (std::int64_t row = 0; row < rows; row += 2) {
    const bool is_pair = row + 1 < rows;
    const auto upper = Coefficients::template of<kind>(args, row);
    const auto lower = Coefficients::template of<kind>(args, is_pair ? row + 1 : row);
    RowSums to{};
    for (std::int64_t column = 0; column < width; column += grid.piece) {
      const std::int64_t first = row * width + column, length = min_of(grid.piece, width - column);
      const typename AlongValues<compute_t<T>>::Stretch own{along.weight + column, along.bias + column};
      to.weight = sums + column, to.bias = sums + width + column;
      if (is_pair)
        add_rows<kind, true>(in, upper, lower, own, first, width, length, to);
      else
        add_rows<kind, false>(in, upper, lower, own, first, width, length, to);
    }
    sum_g[row] = to.rows[0].g, sum_gx[row] = to.rows[0].gx;
    if (is_pair) sum_g[row + 1] = to.rows[1].g, sum_gx[row + 1] = to.rows[1].gx;
  }
}

bool rows_grad_target(const AffineGradArgs& args, double* sum_g, double* sum_gx, double* sums) {
  const RunGrid grid(canonical(args.norm));
  return visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const AlongParameter<compute_t<T>> weight(args.along.weight, args.along.affine),
        bias(args.along.bias, args.along.affine);
    if (weight.ready() == nullptr || bias.ready() == nullptr) return false;
    visit_gate(kind_of(args.gate), [&](auto kind) {
      if constexpr (kind() != GateKind::level)  // with which gamma is folded
        rows_grad_of<T, kind()>(args, {weight.ready(), bias.ready()}, grid, sum_g, sum_gx, sums);
    });
    return true;
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {

namespace {

/// Rows one behind the other, each summed by one task, and a gamma for each of their columns.
bool has_rows(const AffineGradArgs& args) noexcept {
  const Partition norm = canonical(args.norm), affine = canonical(args.along.affine);
  return norm.elements() > 0 && !args.gate.floor.given() && norm.keep0 == 1 && norm.reduce0 == 1 && !by_columns(norm) &&
         RunGrid(norm).parts == 1 && affine.keep0 == 1 && affine.reduce1 == 1 && affine.keep1 == norm.reduce1;
}

}  // namespace

HWY_EXPORT(rows_grad_target);
bool rows_grad(const AffineGradArgs& args, double* sum_g, double* sum_gx, double* sums) {
  return has_rows(args) && HWY_DYNAMIC_DISPATCH(rows_grad_target)(args, sum_g, sum_gx, sums);
}
}  // namespace allnorm::cpu
#endif
