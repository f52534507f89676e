// Gamma and beta that values read along (kernels/ops.hpp), in place of those that are folded into the coefficients of
// their group; and the level that a value does not fall below. What a kernel does with a value is written once, for
// all: an Own is a value's own gamma and beta, or level, a Gammas says where the kernel's values have theirs from.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/vectors.cuh"
#include "kernels/ops.hpp"

namespace allnorm::cuda {

// ---- of one value --------------------------------------------------------------------------------------------------

/// z as it is: gamma and beta are in its coefficients.
struct FoldedOwn {
  static constexpr bool has_level = false;
  template <class C>
  __device__ __forceinline__ C of(C z) const {
    return z;
  }
  template <class S>
  __device__ __forceinline__ S weighted(S g) const {
    return g;
  }
};
template <class C>
struct AlongOwn {
  static constexpr bool has_level = false;
  C weight, bias;
  __device__ __forceinline__ C of(C z) const { return std::fma(z, weight, bias); }
  template <class S>
  __device__ __forceinline__ S weighted(S g) const {
    return static_cast<S>(weight) * g;
  }
};

/// A level, and folded gamma and beta. `rest`: what is asked for as g is what the level takes of dy.
template <class C>
struct FloorOwn : FoldedOwn {
  static constexpr bool has_level = true;
  C level;
  bool rest;

  __device__ __forceinline__ FloorOwn(C own_level, bool asks_rest) : level(own_level), rest(asks_rest) {}
  /// The larger of z and the level; NaN where one of them is.
  __device__ __forceinline__ C raised(C z) const { return z <= level || level != level ? level : z; }
  /// g, where at_level is that of a z at the level; or exactly what it leaves of dy.
  __device__ __forceinline__ C gated(C dy, C z, C at_level) const {
    const C g = z <= level ? z == level ? at_level : C{0} : dy;
    return !rest ? g : g == dy ? C{0} : dy - g;
  }
};

// ---- where groups lie ----------------------------------------------------------------------------------------------

/// A partition as kernels find groups in it: without long divisions where offsets have 32 bits.
struct GroupIndex {
  Partition p{};  // canonical
  bool is_short = false;

  GroupIndex() = default;
  explicit GroupIndex(const Partition& partition)
      : p(canonical(partition)), is_short(p.elements() < std::int64_t{1} << 32) {}
  __device__ __forceinline__ std::int64_t over(std::int64_t a, std::int64_t b) const {
    if (b == 1) return a;
    return is_short ? static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b) : a / b;
  }
};

/// Walks along adjacent values and says the group of each.
struct GroupWalk {
  const Partition& p;
  std::int64_t group, place, column, row;

  __device__ __forceinline__ GroupWalk(const GroupIndex& index, std::int64_t at) : p(index.p) {
    const std::int64_t run = index.over(at, p.reduce1), line = index.over(run, p.keep1),
                       matrix = p.keep0 == 1 ? 0 : index.over(line, p.reduce0);
    place = at - run * p.reduce1;
    column = run - line * p.keep1;
    row = line - matrix * p.reduce0;
    group = matrix * p.keep1 + column;
  }
  __device__ __forceinline__ void step() {
    if (++place < p.reduce1) return;
    place = 0;
    ++group;
    if (++column < p.keep1) return;
    column = 0;
    if (++row < p.reduce0)
      group -= p.keep1;  // the next row of the matrix begins with its first group
    else
      row = 0;
  }
};

// ---- of adjacent values --------------------------------------------------------------------------------------------

/// A parameter's values from `first` on; with n > 1 its data is aligned to vectors and `first` a multiple of n.
template <int n, class C>
__device__ __forceinline__ void load_parameter(const Parameter& parameter, std::int64_t first, C (&to)[n]) {
  const auto load = [&](const auto* data) {
    compute_t<std::remove_cvref_t<decltype(*data)>> values[n];
    unpack(read_vector<n>(data + first), values);
    for (int i = 0; i < n; ++i) to[i] = parameter.with_added(static_cast<C>(values[i]));
  };
  if (parameter.data == nullptr)
    for (int i = 0; i < n; ++i) to[i] = static_cast<C>(parameter.otherwise);
  else if (parameter.dtype == DType::f64)
    load(static_cast<const double*>(parameter.data));
  else if (parameter.dtype == DType::f32)
    load(static_cast<const float*>(parameter.data));
  else if (parameter.dtype == DType::f16)
    load(static_cast<const f16*>(parameter.data));
  else
    load(static_cast<const bf16*>(parameter.data));
}

struct FoldedGammas {
  static constexpr bool along = false, whole = true;
  template <class C, int n>
  struct Values {
    __device__ __forceinline__ FoldedOwn own(int) const { return {}; }
  };
  template <class C, int n>
  __device__ __forceinline__ Values<C, n> load(std::int64_t, int, bool) const {
    return {};
  }
  __device__ __forceinline__ FoldedGammas from(std::int64_t) const { return {}; }
};

/// Of a tensor that `fine` cuts, like the floor.
struct FloorGammas {
  static constexpr bool along = false, whole = true;
  template <class C, int n>
  struct Values {
    C level[n] = {};
    bool rest = false;
    __device__ __forceinline__ FloorOwn<C> own(int e) const { return {level[e], rest}; }
  };

  Floor floor{};
  GroupIndex fine{};
  bool rest = false;
  std::int64_t origin = 0;  // of the offsets

  FloorGammas() = default;
  FloorGammas(const Floor& given, const Partition& partition, bool asks_rest = false)
      : floor(given), fine(partition), rest(asks_rest) {}
  __device__ __forceinline__ FloorGammas from(std::int64_t base) const {
    FloorGammas moved = *this;
    moved.origin = base;
    return moved;
  }
  template <class C, int n>
  __device__ __forceinline__ Values<C, n> load(std::int64_t at, int count, bool) const {
    Values<C, n> values;
    values.rest = rest;
    GroupWalk walk(fine, at + origin);
    std::int64_t group = -1;
    C level = 0;
    unrolled<n>([&](auto e) {
      if (e >= count) return;
      if (walk.group != group) level = static_cast<C>(floor[group = walk.group]);
      values.level[e] = level;
      walk.step();
    });
    return values;
  }
};

/// `checked`: the kernel takes n > 1 values at a time only where they are whole.
template <bool checked>
struct AlongGammas {
  static constexpr bool along = true;
  template <class C, int n>
  struct Values {
    C weight[n] = {}, bias[n] = {};
    __device__ __forceinline__ AlongOwn<C> own(int e) const { return {weight[e], bias[e]}; }
  };

  Parameter weight{.otherwise = 1}, bias{};
  GroupIndex affine{};
  std::int64_t origin = 0;  // of the offsets; in a row of gammas where they are `adjacent`
  bool whole = false;     // n values that begin at a multiple of n have adjacent gammas, which can be read as a vector
  bool in_turn = false;   // so have those of a whole group of the norm
  bool adjacent = false;  // so have all: the value at `at` has gamma `origin + at`

  AlongGammas() = default;
  /// For vectors of n values of a tensor that `norm` cuts too.
  AlongGammas(const Along& given, const Partition& norm, int n)
      : weight(given.weight), bias(given.bias), affine(given.affine) {
    const Partition &p = affine.p, groups = canonical(norm);
    const bool aligned = is_vector_aligned(weight.data) && is_vector_aligned(bias.data);
    whole = p.reduce1 == 1 && p.keep1 % n == 0 && (aligned || n == 1);
    in_turn = whole && groups.reduce0 == 1 && groups.reduce1 > 0 && p.keep1 % groups.reduce1 == 0;
    adjacent = whole && p.keep1 == p.elements();
  }
  /// The same for offsets that count from `base` on, the first value of a group of the norm.
  __device__ __forceinline__ AlongGammas from(std::int64_t base) const {
    AlongGammas moved = *this;
    moved.origin = in_turn ? GroupWalk(affine, base).group : base;
    moved.adjacent = adjacent || in_turn;
    return moved;
  }
  /// Those of the first `count` of n values from `at` on, a multiple of n; bias only if `biased`.
  template <class C, int n>
  __device__ __forceinline__ Values<C, n> load(std::int64_t at, int count, bool biased) const {
    Values<C, n> values;
    at += origin;
    if ((checked && n > 1) || whole) {
      const std::int64_t first = adjacent ? at : GroupWalk(affine, at).group;
      load_parameter(weight, first, values.weight);
      if (biased) load_parameter(bias, first, values.bias);
      return values;
    }
    GroupWalk walk(affine, at);
    unrolled<n>([&](auto e) {
      if (e >= count) return;
      values.weight[e] = static_cast<C>(weight[walk.group]);
      if (biased) values.bias[e] = static_cast<C>(bias[walk.group]);
      walk.step();
    });
    return values;
  }
};

/// Calls f with the Gammas of a kernel that takes n values at a time.
template <bool checked, class F>
void visit_gammas(const Along& along, const Floor& floor, const Partition& norm, const Partition& fine, int n,
                  const F& f) {
  if (along.given)
    f(AlongGammas<checked>(along, norm, n));
  else if (floor.given())
    f(FloorGammas(floor, fine));
  else
    f(FoldedGammas{});
}

}  // namespace allnorm::cuda
