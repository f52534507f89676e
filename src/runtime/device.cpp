// Queues and memory of any device: every function hands on to the backend's Queue::Impl.
#include "allnorm/device.hpp"

#include <string>
#include <utility>

#include "src/runtime/queue.hpp"

namespace allnorm {

std::string to_string(Device device) {
  return device.kind == DeviceKind::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

Queue::Queue(Device device, const Ops& ops, std::shared_ptr<Impl> impl)
    : device_(device), ops_(&ops), impl_(std::move(impl)) {}
Queue::Queue(Queue&&) noexcept = default;
Queue& Queue::operator=(Queue&&) noexcept = default;
Queue::~Queue() = default;

int Queue::threads() const noexcept { return impl_->threads(); }
void* Queue::stream() const noexcept { return impl_->stream(); }
void Queue::wait() { impl_->wait(); }
void Queue::leave_multiprocessors(int count) { impl_->leave_multiprocessors(count); }
int Queue::multiprocessors_left() const noexcept { return impl_->multiprocessors_left(); }

void* allocate(std::size_t bytes, Queue& queue, Fill fill) {
  return bytes == 0 ? nullptr : queue.impl().allocate(bytes, fill);
}

void release(void* data, const std::shared_ptr<Queue::Impl>& owner) noexcept {
  if (data != nullptr) owner->release(data);
}

void copy_to_device(void* to, const void* from, std::size_t bytes, Queue& queue) {
  if (bytes > 0) queue.impl().copy_to_device(to, from, bytes);
}
void copy_to_host(void* to, const void* from, std::size_t bytes, Queue& queue) {
  if (bytes > 0) queue.impl().copy_to_host(to, from, bytes);
}
void copy_on_device(void* to, const void* from, std::size_t bytes, Queue& queue) {
  if (bytes > 0) queue.impl().copy_on_device(to, from, bytes);
}

void expect_memory(const void* data, const Queue& queue, const char* name) {
  if (data != nullptr) queue.impl().expect_memory(data, name);
}

}  // namespace allnorm
