// Arrays of doubles that a call's kernels and steps share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "allnorm/device.hpp"
#include "allnorm/sizes.hpp"
#include "kernels/arrays.hpp"

namespace allnorm {

/// Some arrays of `size` doubles each, in one block of the queue's memory.
class Arrays {
 public:
  Arrays() = default;
  Arrays(std::int64_t arrays, std::int64_t size, Queue& queue, Fill fill = Fill::none) : size_(size) {
    expect_fits("the number of groups", size, {arrays, sizeof(double)}, Code::invalid_input);
    memory_ = Buffer<double>(static_cast<std::size_t>(arrays * size), queue, fill);
  }
  /// The same values, in the queue's order.
  Arrays copy(Queue& queue) const {
    Arrays made;
    made.size_ = size_;
    made.memory_ = Buffer<double>(memory_.size(), queue, Fill::none);
    if (!memory_.empty()) copy_on_device(made.memory_.data(), memory_.data(), memory_.size() * sizeof(double), queue);
    return made;
  }

  /// (size), in memory of the device.
  double* operator[](std::int64_t i) noexcept { return memory_.data() + i * size_; }
  const double* operator[](std::int64_t i) const noexcept { return memory_.data() + i * size_; }
  /// The two, or four, arrays from i on.
  ApplyArrays apply(std::int64_t i) noexcept { return {(*this)[i], (*this)[i + 1]}; }
  GradArrays grad(std::int64_t i) noexcept { return {(*this)[i], (*this)[i + 1], (*this)[i + 2], (*this)[i + 3]}; }

 private:
  std::int64_t size_ = 0;
  Buffer<double> memory_{};
};

}  // namespace allnorm
