// Dense tensors that somebody else owns.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "allnorm/device.hpp"
#include "allnorm/dtype.hpp"
#include "allnorm/error.hpp"

namespace allnorm {

/// Up to eight 64-bit extents. Extents may be 0.
class Shape {
 public:
  static constexpr int max_rank = 8;  ///< most extents

  constexpr Shape() = default;
  /// Throws as the constructor below.
  Shape(std::initializer_list<std::int64_t> extents) : Shape(std::span(extents.begin(), extents.size())) {}
  /// Throws invalid_argument for more than eight extents, a negative one, or a product over 2^63-1.
  explicit Shape(std::span<const std::int64_t> extents);

  constexpr int rank() const noexcept { return rank_; }  ///< number of extents
  /// The extent of an axis in [0, rank()).
  constexpr std::int64_t operator[](int axis) const noexcept { return extent_[static_cast<std::size_t>(axis)]; }
  constexpr const std::int64_t* begin() const noexcept { return extent_.data(); }        ///< of the extents
  constexpr const std::int64_t* end() const noexcept { return extent_.data() + rank_; }  ///< likewise
  /// The product of the extents [from, to); 1 for none.
  constexpr std::int64_t product(int from, int to) const noexcept {
    std::int64_t p = 1;
    for (int i = from; i < to; ++i) p *= (*this)[i];
    return p;
  }
  constexpr std::int64_t elements() const noexcept { return product(0, rank_); }  ///< the product of all
  /// The same extents.
  friend constexpr bool operator==(const Shape& a, const Shape& b) noexcept {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i)
      if (a[i] != b[i]) return false;
    return true;
  }

 private:
  std::array<std::int64_t, max_rank> extent_{};
  int rank_ = 0;
};

/// "(2,3,5)".
std::string to_string(const Shape& shape);

/// Where the channel axis lies in memory. The shape of a view is (N, C, space...) in both orders.
enum class Order : std::uint8_t { channels_first, channels_last };

/// A dense tensor of shape (N, C, space...), read-only. `data` may be null only when there are no elements, or to
/// say "not given" in an optional argument.
struct ConstTensorView {
  const void* data = nullptr;           ///< the first element
  DType dtype = DType::f32;             ///< of the elements
  Device device{};                      ///< whose memory it is
  Shape shape{};                        ///< (N, C, space...)
  Order order = Order::channels_first;  ///< of the memory

  /// It is there, if perhaps without elements.
  bool given() const noexcept { return data != nullptr || shape.rank() > 0; }
  std::int64_t elements() const noexcept { return shape.elements(); }                 ///< N C space
  std::int64_t samples() const noexcept { return shape.rank() > 0 ? shape[0] : 1; }   ///< N
  std::int64_t channels() const noexcept { return shape.rank() > 1 ? shape[1] : 1; }  ///< C
  std::int64_t space() const noexcept { return shape.product(2, shape.rank()); }      ///< positions of a channel
};

/// As ConstTensorView, writable.
struct TensorView {
  void* data = nullptr;                 ///< the first element
  DType dtype = DType::f32;             ///< of the elements
  Device device{};                      ///< whose memory it is
  Shape shape{};                        ///< (N, C, space...)
  Order order = Order::channels_first;  ///< of the memory

  /// It is there, if perhaps without elements.
  bool given() const noexcept { return data != nullptr || shape.rank() > 0; }
  std::int64_t elements() const noexcept { return shape.elements(); }  ///< N C space
  /// The same, read-only.
  operator ConstTensorView() const noexcept { return {data, dtype, device, shape, order}; }
};

/// A view of CPU memory with element type T, in the given order.
template <class T>
ConstTensorView view(const T* data, const Shape& shape, Order order = Order::channels_first) {
  return {data, dtype_of<T>(), Device{}, shape, order};
}
/// The same, writable.
template <class T>
TensorView view(T* data, const Shape& shape, Order order = Order::channels_first) {
  return {data, dtype_of<T>(), Device{}, shape, order};
}

}  // namespace allnorm
