// CPU queues: the host's memory; every call is done when it returns.
#include <cstring>
#include <new>
#include <string>

#include "allnorm/device.hpp"
#include "allnorm/error.hpp"
#include "src/runtime/parallel.hpp"

namespace allnorm {

namespace {
constexpr std::align_val_t alignment{64};  // one cache line, and the widest vector
}

void CpuQueue::leave_multiprocessors(int) {
  fail(Code::invalid_argument, "a queue on cpu has no multiprocessors to leave to others, must be on a GPU");
}

void* CpuQueue::allocate(std::size_t bytes, Fill fill) {
  void* data = ::operator new(bytes, alignment, std::nothrow);
  expect(data != nullptr, Code::device, [&] { return "out of memory: " + std::to_string(bytes) + " bytes on cpu"; });
  if (fill == Fill::zero) std::memset(data, 0, bytes);
  return data;
}

void CpuQueue::release(void* data) noexcept { ::operator delete(data, alignment); }

void CpuQueue::copy_to_device(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void CpuQueue::copy_to_host(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void CpuQueue::copy_on_device(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

void CpuQueue::expect_memory(const void* data, const char* name) const { expect_host_memory(data, name); }

}  // namespace allnorm
