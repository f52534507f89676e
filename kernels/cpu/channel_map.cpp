// Every position's channels by the matrix of their group.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/channel_map.cpp"
#include <hwy/foreach_target.h>

#include <algorithm>
#include <vector>

#include "kernels/cpu/channel_block-inl.hpp"
#include "kernels/cpu/kernels.hpp"

#ifndef ALLNORM_KERNELS_CPU_CHANNEL_MAP_ONCE
#define ALLNORM_KERNELS_CPU_CHANNEL_MAP_ONCE
namespace allnorm::cpu {

/// The coefficients of one group in the compute type.
template <class C>
struct GroupMap {
  std::vector<C> center, matrix, of_dy, shift, zero;  // (width), (width, width) twice, (width) twice
  C power{};

  GroupMap(const ChannelMapArgs& a, std::int64_t group) : zero(static_cast<std::size_t>(a.groups.width), C{0}) {
    const std::int64_t w = a.groups.width, first = group * w;
    power = static_cast<C>(a.power[group]);
    const auto rounded = [](const double* from, std::int64_t size) {
      std::vector<C> made(static_cast<std::size_t>(size));
      std::transform(from, from + size, made.begin(), [](double value) { return static_cast<C>(value); });
      return made;
    };
    center = rounded(a.center + first, w);
    matrix = rounded(a.matrix + first * w, w * w);
    if (a.of_dy != nullptr) of_dy = rounded(a.of_dy + first * w, w * w);
    for (std::int64_t c = 0; c < w; ++c) {
      double value = shift_of(a.shift, first + c);
      for (std::int64_t j = 0; j < w; ++j) {
        const double off = static_cast<double>(center[static_cast<std::size_t>(j)]) - a.center[first + j];
        value += a.matrix[(first + c) * w + j] * (off * a.power[group]);
      }
      shift.push_back(static_cast<C>(value));
    }
  }
};

}  // namespace allnorm::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// out[c][p] += sum over j of matrix[c][j] * rows[j][p], of a block, for four channels c (`matrix` and `out` of the
/// first) that share the loads of the rows, or for one.
template <int channels, class C>
HWY_INLINE void add_mapped(const C* matrix, const C* rows, std::int64_t w, C* out) {
  const hn::ScalableTag<C> d;
  for (std::int64_t p = 0; p < block_positions; p += lanes(d)) {
    const auto at = [&](std::int64_t c) HWY_ATTR { return hn::LoadU(d, out + c * block_positions + p); };
    if constexpr (channels == 1) {
      auto s = at(0);
      for (std::int64_t j = 0; j < w; ++j)
        s = hn::MulAdd(hn::Set(d, matrix[j]), hn::LoadU(d, rows + j * block_positions + p), s);
      hn::StoreU(s, d, out + p);
    } else {
      auto s0 = at(0), s1 = at(1), s2 = at(2), s3 = at(3);
      for (std::int64_t j = 0; j < w; ++j) {
        const auto row = hn::LoadU(d, rows + j * block_positions + p);
        s0 = hn::MulAdd(hn::Set(d, matrix[j]), row, s0);
        s1 = hn::MulAdd(hn::Set(d, matrix[w + j]), row, s1);
        s2 = hn::MulAdd(hn::Set(d, matrix[2 * w + j]), row, s2);
        s3 = hn::MulAdd(hn::Set(d, matrix[3 * w + j]), row, s3);
      }
      hn::StoreU(s0, d, out + p);
      hn::StoreU(s1, d, out + block_positions + p);
      hn::StoreU(s2, d, out + 2 * block_positions + p);
      hn::StoreU(s3, d, out + 3 * block_positions + p);
    }
  }
}

template <class C>
void add_all(const std::vector<C>& matrix, const C* rows, std::int64_t w, C* out) {
  std::int64_t c = 0;
  for (; c + 4 <= w; c += 4) add_mapped<4>(matrix.data() + c * w, rows, w, out + c * block_positions);
  for (; c < w; ++c) add_mapped<1>(matrix.data() + c * w, rows, w, out + c * block_positions);
}

/// Positions [from, to) of one group.
template <class T>
void map_part(const ChannelMapArgs& a, std::int64_t group, std::int64_t from, std::int64_t to) {
  using C = compute_t<T>;
  const std::int64_t w = a.groups.width;
  const GroupMap<C> map(a, group);
  std::vector<C> rows(static_cast<std::size_t>(w * block_positions)), out(rows.size());
  for (std::int64_t p = from; p < to; p += block_positions) {
    const std::int64_t count = min_of(block_positions, to - p);
    for (std::int64_t c = 0; c < w; ++c)
      std::fill_n(out.data() + c * block_positions, block_positions, map.shift[static_cast<std::size_t>(c)]);
    read_block<C>(static_cast<const T*>(a.x), a.groups, group, p, count, map.center.data(), map.power, rows.data());
    add_all(map.matrix, rows.data(), w, out.data());
    if (a.of_dy != nullptr) {
      read_block<C>(static_cast<const T*>(a.dy), a.groups, group, p, count, map.zero.data(), C{1}, rows.data());
      add_all(map.of_dy, rows.data(), w, out.data());
    }
    write_block<T>(out.data(), a.groups, group, p, count, static_cast<T*>(a.y));
  }
}

void channel_map_target(const ChannelMapArgs& a, Queue& queue) {
  // Long enough that coefficients are made seldom.
  const std::int64_t part = ceil_div(max_of(task_values / a.groups.width, 8 * a.groups.width), block_positions) *
                            block_positions,
                     positions = a.groups.positions(), parts = ceil_div(positions, part);
  visit(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    for_items(queue, a.groups.groups() * parts, 1, [&](std::int64_t unit) {
      const std::int64_t from = unit % parts * part;
      map_part<T>(a, unit / parts, from, min_of(positions, from + part));
    });
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {
HWY_EXPORT(channel_map_target);
void channel_map(const ChannelMapArgs& args, Queue& queue) { HWY_DYNAMIC_DISPATCH(channel_map_target)(args, queue); }
}  // namespace allnorm::cpu
#endif
