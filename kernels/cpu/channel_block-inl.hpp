// Some positions of one group of channels, laid out so that a row holds one channel's values: what products and maps of
// a group's channels work on, in either order of axes. Compiled once per Highway target.
#if defined(ALLNORM_KERNELS_CPU_CHANNEL_BLOCK_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ALLNORM_KERNELS_CPU_CHANNEL_BLOCK_INL
#undef ALLNORM_KERNELS_CPU_CHANNEL_BLOCK_INL
#else
#define ALLNORM_KERNELS_CPU_CHANNEL_BLOCK_INL
#endif

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/vectors-inl.hpp"

#ifndef ALLNORM_KERNELS_CPU_CHANNEL_BLOCK_ONCE
#define ALLNORM_KERNELS_CPU_CHANNEL_BLOCK_ONCE
namespace allnorm::cpu {

constexpr std::int64_t block_positions = 128;  // of a block, whole vectors of any length

/// The runs of a block's positions that lie one behind the other in memory, where channels come first.
template <class Run>
void for_runs(const ChannelGroups& g, std::int64_t group, std::int64_t first, std::int64_t count, const Run& run) {
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t sample = (first + done) / g.space, at = (first + done) % g.space;
    const std::int64_t length = min_of(count - done, g.space - at);
    run(done, (sample * g.channels + group * g.width) * g.space + at, length);
    done += length;
  }
}
/// Without space both orders are the same memory, and the other way through it is the shorter one.
inline bool by_runs(const ChannelGroups& g) noexcept { return g.order == Order::channels_first && g.space > 1; }

}  // namespace allnorm::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// The compute type of T with as many lanes as a vector of B, double or that type itself.
template <class B, class T>
using BlockTag = hn::Rebind<compute_t<T>, hn::ScalableTag<B>>;
template <class B, class V>
HWY_INLINE Vec<hn::ScalableTag<B>> as(V value) {
  if constexpr (std::is_same_v<B, double>)
    return to_double(value);
  else
    return value;
}

/// rows[c][p] = (x - center[c]) * power of `count` positions from `first` on, in B; 0 for the rest of the block.
template <class B, class T>
void read_block(const T* x, const ChannelGroups& g, std::int64_t group, std::int64_t first, std::int64_t count,
                const B* center, B power, B* rows) {
  if (count < block_positions) std::fill_n(rows, g.width * block_positions, B{0});
  if (!by_runs(g)) {
    for (std::int64_t p = 0; p < count; ++p) {
      const T* from = x + (first + p) * g.channels + group * g.width;
      for (std::int64_t c = 0; c < g.width; ++c)
        rows[c * block_positions + p] = (static_cast<B>(load(from[c])) - center[c]) * power;
    }
    return;
  }
  const BlockTag<B, T> d;
  const hn::ScalableTag<B> db;
  for_runs(g, group, first, count, [&](std::int64_t to, std::int64_t from, std::int64_t length) HWY_ATTR {
    for (std::int64_t c = 0; c < g.width; ++c) {
      const T* p = x + from + c * g.space;
      B* row = rows + c * block_positions + to;
      const auto middle = hn::Set(db, center[c]), factor = hn::Set(db, power);
      for_vectors(d, length, static_cast<const T*>(nullptr), [&](auto access, std::int64_t i, std::int64_t n) HWY_ATTR {
        const auto value = hn::Mul(hn::Sub(as<B>(get<decltype(access)::value>(d, p + i, n)), middle), factor);
        put<decltype(access)::value>(db, value, row + i, n);
      });
    }
  });
}

/// The inverse: rows to memory.
template <class T>
void write_block(const compute_t<T>* rows, const ChannelGroups& g, std::int64_t group, std::int64_t first,
                 std::int64_t count, T* y) {
  if (!by_runs(g)) {
    for (std::int64_t p = 0; p < count; ++p) {
      T* to = y + (first + p) * g.channels + group * g.width;
      for (std::int64_t c = 0; c < g.width; ++c) to[c] = store<T>(rows[c * block_positions + p]);
    }
    return;
  }
  const WideTag<T> d;
  for_runs(g, group, first, count, [&](std::int64_t from, std::int64_t to, std::int64_t length) HWY_ATTR {
    for (std::int64_t c = 0; c < g.width; ++c) {
      const compute_t<T>* row = rows + c * block_positions + from;
      T* p = y + to + c * g.space;
      for_vectors(d, length, static_cast<const T*>(nullptr), [&](auto access, std::int64_t i, std::int64_t n) HWY_ATTR {
        put<decltype(access)::value>(d, get<decltype(access)::value>(d, row + i, n), p + i, n);
      });
    }
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
