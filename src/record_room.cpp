#include "src/record_room.hpp"

#include <algorithm>

#include "src/gpu.hpp"
#include "src/runtime/queue.hpp"

namespace allnorm {

namespace {

std::shared_ptr<std::byte> memory_on(const Device& device, std::size_t bytes) {
  if (device.kind == DeviceKind::cpu)
    return std::shared_ptr<std::byte>(new std::byte[bytes], std::default_delete<std::byte[]>());
  return gpu_memory(bytes, device.index);
}

}  // namespace

void RecordRoom::reset() noexcept {
  records_.reset();
  size_ = 0;
}

RecordHead RecordRoom::put(const Record& record, int rank, int ranks, Queue& queue) {
  const std::size_t bytes = sizeof(RecordHead) + record.count * sizeof(double);
  stride_ = (bytes + 127) / 128 * 128;
  const auto reader = reader_.lock();  // a queue that has ended has waited
  if (reader && reader != queue.shared_impl()) reader->wait();
  reader_ = queue.shared_impl();
  const std::size_t needed = static_cast<std::size_t>(ranks) * stride_;
  const bool moves = !(queue.device() == device_);
  if (needed > size_ || moves) {
    const std::size_t more = moves ? needed : std::max(needed, 2 * size_);
    queue.wait();  // for what still reads them
    reset();
    records_ = memory_on(queue.device(), more);
    size_ = more;
    device_ = queue.device();
  }
  RecordHead head;
  copy_to_host(&head, record.data, sizeof head, queue);
  copy_on_device(records_.get() + static_cast<std::size_t>(rank) * stride_, record.data, bytes, queue);
  queue.wait();
  return head;
}

}  // namespace allnorm
