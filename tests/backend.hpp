// The device that a test program runs on: the same tests are built for the CPU and for CUDA.
#pragma once

#include <cstddef>
#include <vector>

#include "allnorm/device.hpp"
#include "allnorm/dtype.hpp"
#include "allnorm/tensor.hpp"
#include "kernels/ops.hpp"

namespace backend {

/// A queue on the program's device (`threads`: of the CPU).
allnorm::Queue queue(int threads = 1);
allnorm::Device device();

/// How far statistics of values of a type may be off, relative: up to eight differences from a pivot, or their squares,
/// are added in f32, on a CPU those of 16 bits, on a GPU all but f64.
double statistics_unit(allnorm::DType dtype);

/// An emulated GPU is a thousand times slower than either: a test of many cases that are alike on it takes some.
extern const bool takes_some;

/// Stages of halves that the device's table (kernels/ops.hpp) does not have.
void affine_grad(const allnorm::AffineGradArgs& args, allnorm::Queue& queue);
void patch_sums(const allnorm::PatchSumsArgs& args, allnorm::Queue& queue);

/// Memory that the device and the host both read and write (the host once the queue was waited for).
void* allocate(std::size_t bytes);
void release(void* data) noexcept;

template <class T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <class U>
  Allocator(const Allocator<U>&) noexcept {}
  T* allocate(std::size_t n) { return static_cast<T*>(backend::allocate(n * sizeof(T))); }
  void deallocate(T* data, std::size_t) noexcept { release(data); }
  friend bool operator==(Allocator, Allocator) noexcept { return true; }
};
template <class T>
using Array = std::vector<T, Allocator<T>>;

/// Views of such memory.
template <class T>
auto view(T* data, const allnorm::Shape& shape, allnorm::Order order = allnorm::Order::channels_first) {
  auto made = allnorm::view(data, shape, order);
  made.device = device();
  return made;
}

}  // namespace backend
