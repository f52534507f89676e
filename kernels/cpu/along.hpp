// Gamma and beta where every value has its own: which of them a stretch of memory has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/cpu/grid.hpp"

namespace allnorm::cpu {

/// A place in memory and the group of a partition that it lies in. Stretches that follow each other, or of rows that
/// do, cost no division.
class GroupWalk {
 public:
  explicit GroupWalk(const Partition& partition) noexcept : p_(canonical(partition)) {}

  /// Values from here on whose groups follow each other, or are the same.
  std::int64_t left() const noexcept { return left_; }
  std::int64_t group() const noexcept { return group_; }
  bool groups_follow() const noexcept { return p_.reduce1 == 1; }

  void seek(std::int64_t offset) noexcept {
    if (offset == at_ && left_ > 0) return;
    if (offset > at_ && offset - at_ <= left_) advance(offset - at_);
    if (offset != at_ || left_ == 0) find(offset);
  }
  /// At most left() values.
  void advance(std::int64_t values) noexcept {
    at_ += values;
    left_ -= values;
    if (groups_follow()) group_ += values;
    if (left_ > 0 || p_.keep0 > 1) return;
    if (groups_follow() || ++group_ == p_.keep1) group_ = 0;
    left_ = groups_follow() ? p_.keep1 : p_.reduce1;
  }

 private:
  void find(std::int64_t offset) noexcept {
    at_ = offset;
    const std::int64_t period = groups_follow() ? p_.keep1 : p_.reduce1, place = offset % period;
    left_ = period - place;
    if (groups_follow() && p_.keep0 == 1)  // few divisions: each costs as much as a few vectors of values
      group_ = place;
    else if (p_.keep0 == 1 && p_.reduce0 == 1)
      group_ = offset / p_.reduce1;
    else
      group_ = p_.group_of(offset);
  }

  Partition p_;
  std::int64_t at_ = 0, group_ = 0, left_ = 0;
};

/// One of gamma and beta in the compute type C: where it lies, or made once for the call, or, where every value has its
/// own, made when it is read.
template <class C>
class AlongParameter {
 public:
  AlongParameter() = default;
  AlongParameter(const Parameter& parameter, const Partition& affine) : from_(parameter) {
    if (from_.given() && from_.dtype == dtype_of<C>() && from_.added == 0)
      ready_ = static_cast<const C*>(from_.data);
    else if (affine.group_size() > 1)
      ready_ = made(affine.groups());
  }
  AlongParameter(const AlongParameter&) = delete;
  AlongParameter& operator=(const AlongParameter&) = delete;

  const C* ready() const noexcept { return ready_; }
  /// Those of `count` groups from `first` on; `room` for them.
  const C* at(std::int64_t first, std::int64_t count, C* room) const noexcept {
    if (ready_ != nullptr) return ready_ + first;
    make(first, count, room);
    return room;
  }

 private:
  const C* made(std::int64_t size) {
    own_.resize(static_cast<std::size_t>(size));
    make(0, size, own_.data());
    return own_.data();
  }
  // Like gather() below not inline, so that at() is.
  __attribute__((noinline)) void make(std::int64_t first, std::int64_t count, C* to) const noexcept {
    if (!from_.given()) {
      std::fill_n(to, count, static_cast<C>(from_.otherwise));
      return;
    }
    const C added = static_cast<C>(from_.added);
    visit(from_.dtype, [&](auto type) {
      const auto* from = static_cast<const typename decltype(type)::type*>(from_.data) + first;
      if (added == 0)
        for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<C>(load(from[i]));
      else
#pragma GCC unroll 4  // what steps the loop costs as much as what it does
        for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<C>(load(from[i])) + added;
    });
  }

  Parameter from_{};
  std::vector<C> own_{};
  const C* ready_ = nullptr;
};

/// Gamma and beta in the compute type C.
template <class C>
class AlongValues {
 public:
  /// At most tile_columns values each.
  struct Stretch {
    const C *weight = nullptr, *bias = nullptr;
  };
  struct Room {
    alignas(64) C weight[tile_columns], bias[tile_columns];
  };

  explicit AlongValues(const Along& along)
      : walk_(along.affine),
        weight_(along.weight, along.given ? along.affine : Partition{}),
        bias_(along.bias, along.given ? along.affine : Partition{}) {}
  /// A walk to give to at(), by the thread that owns it.
  GroupWalk walk() const noexcept { return walk_; }

  /// Those of `count` values from memory offset `first` on: where they lie, or made or gathered in `room` where they do
  /// not lie side by side.
  Stretch at(GroupWalk& walk, std::int64_t first, std::int64_t count, Room& room) const noexcept {
    walk.seek(first);
    if (walk.groups_follow() && walk.left() >= count) {
      const std::int64_t group = walk.group();
      walk.advance(count);
      return {weight_.at(group, count, room.weight), bias_.at(group, count, room.bias)};
    }
    gather(weight_.ready(), walk, first, count, room.weight);
    gather(bias_.ready(), walk, first, count, room.bias);
    return {room.weight, room.bias};
  }

 private:
  __attribute__((noinline)) static void gather(const C* values, GroupWalk walk, std::int64_t first, std::int64_t count,
                                               C* to) noexcept {
    for (std::int64_t i = 0; i < count;) {
      walk.seek(first + i);
      const std::int64_t some = min_of(walk.left(), count - i);
      if (walk.groups_follow())
        std::copy_n(values + walk.group(), some, to + i);
      else
        std::fill_n(to + i, some, values[walk.group()]);
      walk.advance(some);
      i += some;
    }
  }

  GroupWalk walk_;
  AlongParameter<C> weight_, bias_;
};

}  // namespace allnorm::cpu
