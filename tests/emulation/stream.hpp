// Streams, events and captures behind their handles.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "driver_types.h"
#include "runtime.hpp"

namespace cuda_emulation::detail {

/// What a stream does in its turn. `device` ones are skipped once the device has failed.
struct Operation {
  enum class Kind { bookkeeping, kernel, copy, device, host_function };
  Kind kind = Kind::bookkeeping;
  std::function<void()> run;
  const void* kernel = nullptr;
};

/// For each stream of a capture, how many of its operations are known to come before.
using Clock = std::map<const CUstream_st*, std::size_t>;

/// A capture in progress. The operations stand in the order of the calls, which respects all dependencies.
struct Capture {
  unsigned long long id = 0;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  const CUstream_st* origin = nullptr;
  std::vector<Operation> operations;
  std::map<const CUstream_st*, Clock> branches;
  bool invalid = false, ended = false;
};

/// One recording of an event.
struct Mark {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<Capture> capture;  // if it was recorded in one
  Clock clock;

  void set();
  void wait();
  bool ready();
};

/// Guards captures, the events' marks and the sets of handles. Stream threads never take it.
std::mutex& api_mutex();

/// The stream of a handle; that of the current device for 0. Null if the handle is none. With api_mutex held.
std::shared_ptr<CUstream_st> find_stream(cudaStream_t handle);
/// Queues or captures an operation. With api_mutex held.
cudaError_t submit(CUstream_st& stream, Operation operation);
/// The same, with the lock and the look-up of the handle.
cudaError_t submit_to(cudaStream_t handle, Operation operation);
/// Waits for what has been queued so far.
void wait_for(CUstream_st& stream);
void wait_for_device(int device);
void wait_for_all_streams();

/// cudaErrorStreamCaptureUnsupported if the calling thread may not make calls that are unsafe during a capture; that
/// capture is then invalid. With api_mutex held.
cudaError_t check_unsafe_call();
/// All captures that have begun and not ended. With api_mutex held.
std::vector<std::shared_ptr<Capture>>& open_captures();

}  // namespace cuda_emulation::detail

struct CUstream_st {
  int device = 0;
  unsigned int flags = 0;
  int priority = 0;
  unsigned long long id = 0;
  std::shared_ptr<cuda_emulation::detail::Capture> capture;  // under api_mutex

  std::mutex mutex;
  std::condition_variable work, idle;
  std::deque<cuda_emulation::detail::Operation> queue;
  std::uint64_t queued = 0, completed = 0;
  bool destroyed = false;
};

struct CUevent_st {
  unsigned int flags = 0;
  int device = 0;
  std::shared_ptr<cuda_emulation::detail::Mark> mark;  // under api_mutex; null before the first record
};
