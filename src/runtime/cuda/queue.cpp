// CUDA queues: streams, memory in stream order, copies, and all of it again while a stream is being captured.
#include "src/runtime/cuda/queue.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>

namespace allnorm {

namespace cuda {

namespace {

constexpr std::size_t least_tickets = 4096;

// Asked once per device: the runtime takes milliseconds for it.
const cudaDeviceProp& properties_of_device(int index) {
  static std::mutex mutex;
  static std::map<int, cudaDeviceProp> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "asking for the properties of a device");
  return known.emplace(index, properties).first->second;
}

// The device's default pool, told to keep what is released to it. Null where the device has no pools.
cudaMemPool_t pool_of_device(int index) {
  int supported = 0;
  check(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, index), "asking for memory pools");
  if (supported == 0) return nullptr;
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, index), "asking for the memory pool");
  std::uint64_t everything = UINT64_MAX;
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &everything), "setting up the memory pool");
  return pool;
}

CudaQueue& of(Queue& queue) noexcept { return static_cast<CudaQueue&>(queue.impl()); }

}  // namespace

// ---- beginning and end ----------------------------------------------------------------------------------------------

CudaQueue::CudaQueue(int index, cudaStream_t stream, bool own)
    : index_(index), stream_(stream), own_stream_(own), properties_(&properties_of_device(index)), staging_(index) {}

CudaQueue::CudaQueue(int index) : CudaQueue(index, nullptr, true) {
  const DeviceGuard on(index_);
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
  prepare();
}

CudaQueue::CudaQueue(int index, cudaStream_t stream) : CudaQueue(index, stream, false) {
  const DeviceGuard on(index_);
  prepare();
}

void CudaQueue::prepare() {
  note_cuda_in_use(index_);
  const RelaxedCapture relaxed;
  pool_ = pool_of_device(index_);
  tickets(least_tickets);
}

CudaQueue::~CudaQueue() {
  int before = index_;
  ignore(cudaGetDevice(&before));
  ignore(cudaSetDevice(index_));
  {
    const RelaxedCapture relaxed;
    ignore(cudaStreamSynchronize(stream_));
    for (void* data : kept_) ignore(cudaFree(data));
    sources_.clear();
    if (own_stream_ && stream_ != nullptr) ignore(cudaStreamDestroy(stream_));
  }
  ignore(cudaSetDevice(before));
}

// ---- order ----------------------------------------------------------------------------------------------------------

void CudaQueue::leave_multiprocessors(int count) {
  expect(count >= 0, Code::invalid_argument,
         [&] { return "multiprocessors left to others are " + std::to_string(count) + ", must be 0 or more"; });
  left_ = count;
}

bool CudaQueue::capturing() const {
  // The legacy default stream cannot be captured, and asking it fails while another stream is.
  if (stream_ == nullptr || stream_ == cudaStreamLegacy) return false;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream_, &status), "asking for a capture");
  return status != cudaStreamCaptureStatusNone;
}

void CudaQueue::wait() {
  const DeviceGuard on(index_);
  expect(!capturing(), Code::device, [&] {
    return "the stream of " + to_string({DeviceKind::cuda, index_}) + " is being captured, must not be waited for";
  });
  check(cudaStreamSynchronize(stream_), "work");
}

// ---- memory ---------------------------------------------------------------------------------------------------------

// Memory that is there at once and belongs to no stream: freed with the queue. Not in stream order, so that it may be
// used by graphs and while one is captured.
void* CudaQueue::allocate_now(std::size_t bytes) {
  const RelaxedCapture relaxed;
  const std::lock_guard lock(kept_mutex_);
  kept_.reserve(kept_.size() + 1);
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation && pool_ != nullptr) {  // the pool may hold memory that nobody uses
    ignore(status);
    ignore(cudaMemPoolTrimTo(pool_, 0));
    status = cudaMalloc(&data, bytes);
  }
  if (status == cudaErrorMemoryAllocation) {
    ignore(status);
    return nullptr;
  }
  check(status, "allocating memory");
  kept_.push_back(data);
  return data;
}

void* CudaQueue::allocate_in_order(std::size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = pool_ != nullptr ? cudaMallocAsync(&data, bytes, stream_) : cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    ignore(status);
    return nullptr;
  }
  check(status, "allocating memory");
  return data;
}

void* CudaQueue::allocate(std::size_t bytes, Fill fill) {
  const DeviceGuard on(index_);
  void* data = capturing() ? allocate_now(bytes) : allocate_in_order(bytes);
  expect(data != nullptr, Code::device, [&] {
    std::size_t free = 0, total = 0;
    ignore(cudaMemGetInfo(&free, &total));
    return to_string({DeviceKind::cuda, index_}) + " has " + std::to_string(free) + " bytes free, must have " +
           std::to_string(bytes) + " for a buffer";
  });
  if (fill == Fill::zero) {
    const cudaError_t status = cudaMemsetAsync(data, 0, bytes, stream_);
    if (status != cudaSuccess) release(data);
    check(status, "zeroing memory");
  }
  return data;
}

void CudaQueue::release(void* data) noexcept {
  try {
    const DeviceGuard on(index_);
    const std::lock_guard lock(kept_mutex_);
    if (std::find(kept_.begin(), kept_.end(), data) != kept_.end()) return;
    if (capturing())
      kept_.push_back(data);  // a replay of the graph may use it
    else
      ignore(pool_ != nullptr ? cudaFreeAsync(data, stream_) : cudaFree(data));
  } catch (const std::exception&) {  // nothing can be released on a broken device
  }
}

// Zeros for every later use, whether or not the stream is being captured now: in a graph they would come with each
// replay, and not before the first.
void CudaQueue::zero_now(void* data, std::size_t bytes) {
  if (!capturing()) {
    check(cudaMemsetAsync(data, 0, bytes, stream_), "zeroing memory");
    return;
  }
  const RelaxedCapture relaxed;
  cudaStream_t aside = nullptr;
  check(cudaStreamCreateWithFlags(&aside, cudaStreamNonBlocking), "making a stream");
  cudaError_t status = cudaMemsetAsync(data, 0, bytes, aside);
  if (status == cudaSuccess) status = cudaStreamSynchronize(aside);
  ignore(cudaStreamDestroy(aside));
  check(status, "zeroing memory");
}

unsigned* CudaQueue::tickets(std::size_t count) {
  if (count <= tickets_size_) return tickets_;
  const DeviceGuard on(index_);
  const std::size_t size = std::max({count, 2 * tickets_size_, least_tickets});
  auto* grown = static_cast<unsigned*>(allocate_now(size * sizeof(unsigned)));
  expect(grown != nullptr, Code::device, [&] {
    return to_string({DeviceKind::cuda, index_}) + " has no memory free, must have " +
           std::to_string(size * sizeof(unsigned)) + " bytes for counters of its kernels";
  });
  zero_now(grown, size * sizeof(unsigned));
  tickets_ = grown;  // the former ones stay: a graph may use them
  tickets_size_ = size;
  return tickets_;
}

// ---- copies ---------------------------------------------------------------------------------------------------------

void CudaQueue::copy_to_device(void* to, const void* from, std::size_t bytes) {
  const DeviceGuard on(index_);
  if (capturing()) {  // a replay copies again what is here now; and pageable memory cannot be captured
    PinnedBlock source(bytes, index_);
    std::memcpy(source.host(), from, bytes);
    sources_.push_back(std::move(source));
    check(cudaMemcpyAsync(to, sources_.back().host(), bytes, cudaMemcpyHostToDevice, stream_), "a copy to the device");
    return;
  }
  staging_.copy(to, from, bytes, stream_);
}

void CudaQueue::copy_to_host(void* to, const void* from, std::size_t bytes) {
  const DeviceGuard on(index_);
  expect(!capturing() || locate(to).place != Place::host, Code::device, [&] {
    return "a copy from " + to_string({DeviceKind::cuda, index_}) +
           " goes to pageable memory, must go to pinned memory while the stream is being captured";
  });
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "a copy to the host");
}

void CudaQueue::copy_on_device(void* to, const void* from, std::size_t bytes) {
  const DeviceGuard on(index_);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "a copy on the device");
}

void CudaQueue::expect_memory(const void* data, const char* name) const {
  const DeviceGuard on(index_);
  const Located at = locate(data);
  const auto must = [&] { return ", must be on " + to_string({DeviceKind::cuda, index_}); };
  expect(at.place != Place::host, Code::device, [&] { return std::string(name) + " is in host memory" + must(); });
  expect(at.place == Place::shared || at.index == index_, Code::device, [&] {
    return std::string(name) + " is on " + to_string({DeviceKind::cuda, at.index}) + must();
  });
}

// ---- for kernels and transports -------------------------------------------------------------------------------------

cudaStream_t stream_of(Queue& queue) noexcept { return of(queue).handle(); }
const cudaDeviceProp& properties_of(Queue& queue) noexcept { return of(queue).properties(); }
bool is_capturing(Queue& queue) { return of(queue).capturing(); }
unsigned* tickets(Queue& queue, std::size_t count) { return of(queue).tickets(count); }

}  // namespace cuda

}  // namespace allnorm
