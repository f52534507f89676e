// Threads of one process exchange records in GPU memory: each stream writes its record and a flag, and waits for the
// others' flags.
//
// Slots. Exchange number s uses the slots of parity s % 2. A rank writes its slot for s + 2 after its stream has seen
// every flag at s + 1 or more. A peer's stream raises its flag to s + 1 after everything that was enqueued there
// before, and that includes whatever read the slots of s. So nobody still reads what is written over: two are enough.
// One is not: a rank may begin s + 1 while a peer still reads s.
#include "src/transport/device_threads.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <list>
#include <mutex>
#include <utility>
#include <vector>

#include "src/cuda/watcher.hpp"
#include "src/runtime/cuda/queue.hpp"
#include "src/transport/deadline.hpp"
#include "src/whereabouts.hpp"

namespace allnorm {

namespace {

// The driver's functions for flags, found at run time: the project does not link the driver.
struct StreamFlags {
  CUresult (*write)(CUstream, CUdeviceptr, cuuint64_t, unsigned) = nullptr;
  CUresult (*wait)(CUstream, CUdeviceptr, cuuint64_t, unsigned) = nullptr;
};

template <class Function>
void find(const char* name, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
  const cudaError_t asked = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status);
#else
  const cudaError_t asked = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status);
#endif
  cuda::check(asked, "looking for a function of the CUDA driver");
  expect(status == cudaDriverEntryPointSuccess && found != nullptr, Code::unsupported,
         [&] { return "the CUDA driver has no " + std::string(name) + ", must be of CUDA 12 or later"; });
  function = reinterpret_cast<Function>(found);
}

void expect_enqueued(CUresult result, const char* tried) {
  expect(result == CUDA_SUCCESS, Code::device,
         [&] { return std::string(tried) + " failed: CUDA driver error " + std::to_string(static_cast<int>(result)); });
}

// Above every exchange number; not the largest 64-bit value: the comparison in streams is one of signed differences.
constexpr std::uint64_t open_flag = std::numeric_limits<std::int64_t>::max();

// Streams of a GPU beyond its number of connections share one and wait for each other in it: two ranks in one
// connection would wait for ever.
int connections() {
  constexpr int by_default = 8;
  const char* text = std::getenv("CUDA_DEVICE_MAX_CONNECTIONS");
  int value = 0;
  if (text == nullptr || std::from_chars(text, text + std::strlen(text), value).ec != std::errc()) return by_default;
  return value;
}

// A kernel that is loaded at its first launch may have to wait for all that runs on the GPU; beside a stream that waits
// for a rank which has not come that far it would wait for ever.
void expect_loaded_kernels() {
  CUresult (*loading_mode)(CUmoduleLoadingMode*) = nullptr;
  find("cuModuleGetLoadingMode", loading_mode);
  CUmoduleLoadingMode mode{};
  expect_enqueued(loading_mode(&mode), "asking how kernels are loaded");
  expect(mode == CU_MODULE_EAGER_LOADING, Code::unsupported,
         "ranks as threads share a GPU and its kernels are loaded when first used, must be loaded at the start: set "
         "CUDA_MODULE_LOADING=EAGER in the environment before the program uses CUDA");
}

class ThreadHub final : public DeviceHub, public cuda::Watched {
 public:
  ThreadHub(std::vector<std::string> names, const Patience& patience, std::vector<int> numbers)
      : names_(std::move(names)),
        numbers_(std::move(numbers)),
        patience_(patience),
        members_(names_.size()),
        flags_block_(names_.size() * sizeof(std::uint64_t), current_device()),
        declined_block_(names_.size() * sizeof(RecordHead), current_device()),
        watcher_(cuda::Watcher::of_process()) {
    if (size() > 1) expect_loaded_kernels();
    find("cuStreamWriteValue64", stream_flags_.write);
    find("cuStreamWaitValue64", stream_flags_.wait);
    const int device = current_device();
    for (Member& member : members_) member.reports = std::make_unique<cuda::Reports>(device, nullptr);
    watcher_->add(*this);
  }

  ~ThreadHub() override {
    const cuda::RelaxedCapture relaxed;
    Deadline deadline(patience_, patience_.timeout);
    for (const Member& member : members_)
      while (member.left != nullptr && cudaEventQuery(member.left) == cudaErrorNotReady) {
        cuda::ignore(cudaGetLastError());
        if (deadline.over()) open_flags();  // a stream still waits for a rank that never came
        deadline.relax();
      }
    watcher_->remove(*this);
    for (const Member& member : members_) {
      if (member.left != nullptr) cuda::ignore(cudaEventDestroy(member.left));
      if (member.switched != nullptr) cuda::ignore(cudaEventDestroy(member.switched));
    }
    for (const Slots& slots : slots_)
      for (void* data : slots.data) cuda::ignore(cudaFree(data));
  }

  Gathered gather(int rank, const Record& record, Queue& queue) override {
    failure_.rethrow();
    expect(!cuda::is_capturing(queue), Code::unsupported, "ranks as threads of one GPU cannot be captured in a graph");
    Member& member = members_[static_cast<std::size_t>(rank)];
    if (member.device < 0) join(member, queue);
    expect(queue.device().index == member.device, Code::invalid_argument, [&] {
      return "the queue of " + name_of(rank) + " is on " + to_string(queue.device()) +
             ", must be on cuda:" + std::to_string(member.device) + " as before";
    });
    const cuda::DeviceGuard guard(member.device);
    follow(member, queue);
    const cudaStream_t stream = cuda::stream_of(queue);
    const std::size_t bytes = sizeof(RecordHead) + record.count * sizeof(double);
    const Gathered all = exchange(member, rank, record.data, bytes, stream);
    if (bytes <= all.stride) return all;
    return spread(member, all.records, all.stride, bytes, stream, queue);
  }

  void decline(int rank, const Error& error) override {
    Member& member = members_[static_cast<std::size_t>(rank)];
    try {
      failure_.rethrow();
      expect(member.queue != nullptr, Code::aborted, error.message());
      const cuda::DeviceGuard guard(member.device);
      auto* const head = static_cast<RecordHead*>(declined_block_.host()) + rank;
      *head = RecordHead(Header("declined", Direction::agreement, member.exchanges), error.message());
      exchange(member, rank, reinterpret_cast<const std::byte*>(head), sizeof *head, member.stream());
    } catch (...) {
      end(Code::aborted, name_of(rank) + " failed: " + error.message());
    }
  }

  Reporter reporter(int rank) const noexcept override {
    return members_[static_cast<std::size_t>(rank)].reports->reporter();
  }

  void check(int rank) override {
    failure_.rethrow();
    members_[static_cast<std::size_t>(rank)].reports->check(names_);
  }

  void abort(const std::string& why) noexcept override { end(Code::aborted, why); }

  void leave(int rank) noexcept override {
    Member& member = members_[static_cast<std::size_t>(rank)];
    if (member.queue == nullptr || member.left != nullptr) return;
    try {
      const cuda::DeviceGuard guard(member.device);
      cuda::check(cudaEventCreateWithFlags(&member.left, cudaEventDisableTiming), "making an event");
      cuda::check(cudaEventRecord(member.left, member.stream()), "marking a rank's end");
    } catch (const Error&) {  // the device is in an error state: nothing runs there any more
    }
    member.queue = nullptr;
  }

  void look() noexcept override {
    try {
      if (failure_.is_set()) {
        open_flags();  // again: streams may have written theirs since
        return;
      }
      for (std::size_t rank = 0; rank < members_.size(); ++rank) {  // one of them tells it for all, who it is
        const int number = numbers_.empty() ? static_cast<int>(rank) : numbers_[rank];
        const std::string late = members_[rank].reports->late(patience_, number, true, missing() + " or late");
        if (!late.empty()) return end(Code::timeout, late);
      }
    } catch (...) {
      end(Code::transport, "the watcher of a group of threads ran out of memory");
    }
  }

 private:
  struct Member {
    int device = -1;        // unknown until the first exchange
    std::size_t place = 0;  // of the device in devices_
    std::uint64_t exchanges = 0;
    std::shared_ptr<Queue::Impl> queue{};
    cudaEvent_t switched = nullptr, left = nullptr;
    std::unique_ptr<cuda::Reports> reports{};
    Buffer<std::byte> spread{};  // where records of another length are laid out

    cudaStream_t stream() const noexcept { return static_cast<cudaStream_t>(queue->stream()); }
  };
  // Both parities' slots of all ranks, once per device: (2, ranks, stride) bytes each.
  struct Slots {
    std::uint64_t from = 0;  // the first exchange that uses them
    std::size_t stride = 0;
    std::vector<void*> data{};  // [place]
  };
  struct SlotsView {
    std::size_t stride;
    const std::vector<void*>* data;
  };

  // Enqueues the rank's part in its next exchange, and the wait for the others'. Where the ranks disagree about the
  // length the slots may be shorter than `bytes`: then the heads are there, and say so to all.
  Gathered exchange(Member& member, int rank, const std::byte* record, std::size_t bytes, cudaStream_t stream) {
    const std::uint64_t number = ++member.exchanges;
    const SlotsView slots = slots_of(number, bytes);
    const std::size_t first = number % 2 * members_.size() * slots.stride;  // of this parity
    const std::size_t own = first + static_cast<std::size_t>(rank) * slots.stride;
    for (void* data : *slots.data)
      cuda::check(cudaMemcpyAsync(static_cast<std::byte*>(data) + own, record,
                                  bytes <= slots.stride ? bytes : sizeof(RecordHead), cudaMemcpyDefault, stream),
                  "copying a record");
    expect_enqueued(stream_flags_.write(stream, flag_address(rank), number, CU_STREAM_WRITE_VALUE_DEFAULT),
                    "raising a rank's flag");
    for (int peer = 0; peer < size(); ++peer)
      if (peer != rank)
        expect_enqueued(stream_flags_.wait(stream, flag_address(peer), number, CU_STREAM_WAIT_VALUE_GEQ),
                        "waiting for a rank's flag");
    return {static_cast<const std::byte*>((*slots.data)[member.place]) + first, slots.stride, size(), nullptr};
  }

  static int current_device() {
    int device = 0;
    cuda::check(cudaGetDevice(&device), "asking for the current device");
    return device;
  }
  int size() const noexcept { return static_cast<int>(members_.size()); }
  const std::string& name_of(int rank) const noexcept { return names_[static_cast<std::size_t>(rank)]; }
  std::atomic_ref<std::uint64_t> flag(std::size_t rank) const noexcept {
    return std::atomic_ref(static_cast<std::uint64_t*>(flags_block_.host())[rank]);
  }
  CUdeviceptr flag_address(int rank) const noexcept {
    return static_cast<CUdeviceptr>(
        reinterpret_cast<std::uintptr_t>(static_cast<std::uint64_t*>(flags_block_.device()) + rank));
  }
  // Streams run on through their waits, over slots that others may be writing: what they read means nothing, and every
  // later call says so.
  void open_flags() noexcept {
    for (std::size_t rank = 0; rank < members_.size(); ++rank) flag(rank).store(open_flag);
  }
  void end(Code code, const std::string& why) noexcept {
    failure_.set(code, why);
    open_flags();
    joined_.notify_all();
  }

  // "rank 2 is missing": those that others are ahead of.
  std::string missing() const {
    std::uint64_t most = 0;
    for (std::size_t rank = 0; rank < members_.size(); ++rank) most = std::max(most, flag(rank).load());
    std::vector<std::string> who;
    for (std::size_t rank = 0; rank < members_.size(); ++rank)
      if (flag(rank).load() < most) who.push_back(names_[rank]);
    return who.empty() ? "a rank is missing" : are_missing(who);
  }

  // Every rank's record goes to every device, so all must have said theirs.
  void join(Member& member, const Queue& queue) {
    Deadline deadline(patience_, patience_.first_timeout);
    std::unique_lock lock(mutex_);
    member.device = queue.device().index;
    const auto known = std::find(devices_.begin(), devices_.end(), member.device);
    member.place = static_cast<std::size_t>(known - devices_.begin());
    if (known == devices_.end()) devices_.push_back(member.device);
    ++members_there_;
    joined_.notify_all();
    while (members_there_ < size() && !failure_.is_set()) {
      joined_.wait_for(lock, std::chrono::milliseconds(10));
      if (members_there_ == size() || !deadline.over()) continue;
      std::vector<std::string> who;
      for (std::size_t rank = 0; rank < members_.size(); ++rank)
        if (members_[rank].device < 0) who.push_back(names_[rank]);
      end(Code::timeout, "exchange 1: " + are_missing(who) + ", not done after " + deadline.text());
    }
    const auto sharing =
        std::count_if(members_.begin(), members_.end(), [&](const Member& m) { return m.device == member.device; });
    if (const int most = connections(); sharing > most)
      end(Code::unsupported, std::to_string(sharing) + " ranks share cuda:" + std::to_string(member.device) +
                                 ", must be at most " + std::to_string(most) +
                                 ": CUDA_DEVICE_MAX_CONNECTIONS (up to 32) allows more");
    failure_.rethrow();
  }

  // What is enqueued on another queue than before comes after what this rank enqueued there.
  void follow(Member& member, Queue& queue) {
    const auto& impl = queue.shared_impl();
    if (member.queue != nullptr && member.queue != impl) {
      if (member.switched == nullptr)
        cuda::check(cudaEventCreateWithFlags(&member.switched, cudaEventDisableTiming), "making an event");
      cuda::check(cudaEventRecord(member.switched, member.stream()), "leaving a stream");
      cuda::check(cudaStreamWaitEvent(cuda::stream_of(queue), member.switched, 0), "following a stream");
    }
    member.queue = impl;
  }

  // The slots of an exchange: those of the one before, or larger ones if the first rank to come needs them. Hosts run
  // ahead of each other, so later ones look up what was decided. Old slots stay until the end: to free memory would
  // wait for streams that wait for this very thread. Their sizes double, so all together are at most twice the last.
  SlotsView slots_of(std::uint64_t number, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (number > decided_) {
      decided_ = number;
      const std::size_t present = slots_.empty() ? 0 : slots_.back().stride;
      if (bytes > present) grow(number, std::max(bytes, 2 * present));
    }
    auto at = slots_.end();
    while (std::prev(at)->from > number) --at;
    return {std::prev(at)->stride, &std::prev(at)->data};
  }

  void grow(std::uint64_t from, std::size_t bytes) {
    constexpr std::size_t line = 128;
    const std::size_t stride = (bytes + line - 1) / line * line;
    Slots slots{from, stride, {}};
    const cuda::RelaxedCapture relaxed;
    for (const int device : devices_) {
      const cuda::DeviceGuard guard(device);
      void* data = nullptr;
      const cudaError_t status = cudaMalloc(&data, 2 * members_.size() * stride);
      if (status != cudaSuccess)
        for (void* made : slots.data) cuda::ignore(cudaFree(made));
      cuda::check(status, "allocating the records of ranks as threads");
      slots.data.push_back(data);
    }
    slots_.push_back(std::move(slots));
  }

  // For a rank whose record is longer than the slots: heads as far apart as its own length has it, so that whoever
  // reads all of its own length stays in bounds. The doubles are not the peers'; the heads say that they must not be
  // used.
  Gathered spread(Member& member, const std::byte* records, std::size_t stride, std::size_t bytes, cudaStream_t stream,
                  Queue& queue) {
    if (member.spread.size() < members_.size() * bytes)
      member.spread = Buffer<std::byte>(members_.size() * bytes, queue, Fill::zero);
    for (std::size_t rank = 0; rank < members_.size(); ++rank)
      cuda::check(cudaMemcpyAsync(member.spread.data() + rank * bytes, records + rank * stride, sizeof(RecordHead),
                                  cudaMemcpyDeviceToDevice, stream),
                  "copying a head");
    return {member.spread.data(), bytes, size(), nullptr};
  }

  std::vector<std::string> names_;  // [rank]
  const std::vector<int> numbers_;  // [rank] among all; empty: the same
  Patience patience_;
  StreamFlags stream_flags_{};
  std::vector<Member> members_;       // [rank]
  cuda::PinnedBlock flags_block_;     // (ranks) the last exchange that the rank's record is there for
  cuda::PinnedBlock declined_block_;  // (ranks) RecordHead
  cuda::Failure failure_;
  std::mutex mutex_;  // of what follows
  std::condition_variable joined_;
  int members_there_ = 0;
  std::vector<int> devices_;   // [place]
  std::list<Slots> slots_;     // by `from`
  std::uint64_t decided_ = 0;  // the last exchange whose slots are known
  std::shared_ptr<cuda::Watcher> watcher_;
};

}  // namespace

std::shared_ptr<DeviceHub> make_device_hub(std::vector<std::string> names, const Patience& patience,
                                           std::vector<int> numbers) {
  return std::make_shared<ThreadHub>(std::move(names), patience, std::move(numbers));
}

}  // namespace allnorm
