// What the maps do to `n` adjacent values: apply and its gradient. A map is a struct with load(offset, count), which
// only reads, and store(loaded, offset, count, k), which computes with the coefficients k(e) of value e and writes; so
// that a thread can have several loads under way. count <= n; the loads of a value precede its store, so that results
// may go where an input was.
#pragma once

#include "kernels/cuda/coefficients.cuh"

namespace allnorm::cuda {

/// `whole`: every tensor is aligned for vectors; otherwise values are read and written one by one.
template <int n, class T>
__device__ __forceinline__ Vector<T, n> read_some(bool whole, const T* p, int count) {
  if (whole && count == n) return read_vector<n>(p, Hint::last);  // a map is the last to read its inputs
  return read_values<n>(p, count);
}
template <int n, class T>
__device__ __forceinline__ void write_some(bool whole, T* p, const Vector<T, n>& v, int count, Hint hint) {
  if (whole && count == n)
    write_vector(p, v, hint);
  else
    write_values(p, v, count);
}

/// y = activation(((x - center) * scale + shift) * weight + bias + residual); and the sign of y as bits.
template <class T, int width, class Gammas = FoldedGammas>
struct ApplyMap {
  using Value = T;
  using C = compute_t<T>;
  static constexpr int n = width;
  const T* x;
  const T* residual;
  T* y;
  std::uint8_t* mask;  // optional, for n = 8: a thread writes whole bytes
  Below<C> below;
  bool whole;
  Hint hint;
  Gammas gammas{};

  struct Loaded {
    Vector<T, n> x, residual;
  };
  __device__ __forceinline__ Loaded load(std::int64_t offset, int count) const {
    Loaded loaded;
    loaded.x = read_some<n>(whole, x + offset, count);
    loaded.residual = residual != nullptr ? read_some<n>(whole, residual + offset, count) : Vector<T, n>{};
    return loaded;
  }
  template <class K>
  __device__ __forceinline__ void store(const Loaded& loaded, std::int64_t offset, int count, const K& k) const {
    C value[n], other[n];
    unpack(loaded.x, value);
    unpack(loaded.residual, other);
    const auto values = gammas.template load<C, n>(offset, count, true);
    const auto map = [&](auto plain) {
      for (int e = 0; e < n; ++e)
        value[e] = y_of<plain()>(value[e], k(e), values.own(e), residual != nullptr, other[e], below);
    };
    if (residual == nullptr && below.is_identity())
      map(std::true_type{});
    else
      map(std::false_type{});
    const auto result = pack<T, n>(value);
    write_some(whole, y + offset, result, count, hint);
    if constexpr (n == 8) {
      if (mask == nullptr) return;
      unpack(result, value);  // of y as it was rounded
      unsigned bits = 0;
      for (int e = 0; e < n; ++e)
        if (e < count && !(value[e] <= 0)) bits |= 1u << e;
      mask[offset / 8] = static_cast<std::uint8_t>(bits);
    }
  }
};

/// dx = weight * g * gain + (x - center) * power * slope + offset, dresidual = g; each where it is asked for.
template <class T, int width, class Gammas = FoldedGammas>
struct GradMap {
  using Value = T;
  using C = compute_t<T>;
  static constexpr int n = width;
  static_assert(8 % n == 0, "the bits of n values lie in one byte");
  const T* x;
  const T* dy;
  T* dx;
  T* dresidual;
  Gating<C> gate;
  bool whole;
  Hint hint;
  Gammas gammas{};

  struct Loaded {
    Vector<T, n> x, dy;
    unsigned bits;
  };
  __device__ __forceinline__ Loaded load(std::int64_t offset, int count) const {
    Loaded loaded;
    loaded.x = read_some<n>(whole, x + offset, count);
    loaded.dy = read_some<n>(whole, dy + offset, count);
    loaded.bits = gate.bits_at(offset);
    return loaded;
  }
  template <class K>
  __device__ __forceinline__ void store(const Loaded& loaded, std::int64_t offset, int count, const K& k) const {
    C value[n], g[n];
    unpack(loaded.x, value);
    unpack(loaded.dy, g);
    const auto values = gammas.template load<C, n>(offset, count, gate.kind == GateKind::sign);
    for (int e = 0; e < n; ++e) {
      const GradCoefficients<C> c = k(e);
      g[e] = g_of(value[e], g[e], c, values.own(e), gate, (loaded.bits >> e) & 1u);
      value[e] = dx_of(value[e], g[e], c, values.own(e));
    }
    if (dx != nullptr) write_some(whole, dx + offset, pack<T, n>(value), count, hint);
    if (dresidual != nullptr) write_some(whole, dresidual + offset, pack<T, n>(g), count, hint);
  }
};

}  // namespace allnorm::cuda
