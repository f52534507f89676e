// Ranks as threads with a CUDA queue each, and their records, written and read without kernels.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "allnorm/communicator.hpp"

namespace allnorm::test {

/// Runs body(rank) on a thread per rank and rethrows the first error.
inline void on_ranks(int ranks, const std::function<void(int)>& body) {
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      try {
        body(rank);
      } catch (...) {
        errors[static_cast<std::size_t>(rank)] = std::current_exception();
      }
    });
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors)
    if (error) std::rethrow_exception(error);
}

inline cudaStream_t stream_of_queue(const Queue& queue) { return static_cast<cudaStream_t>(queue.stream()); }

/// A record and the room for the group's, on the queue's device.
class DeviceRecord {
 public:
  DeviceRecord(std::size_t room, std::size_t count, Queue& queue)
      : count_(count), record_(sizeof(RecordHead) + count * sizeof(double), queue), room_(room, queue) {}

  Record view() { return {record_.data(), count_, room_.data()}; }
  void write(const Header& header, const std::vector<double>& values, Queue& queue, std::uint64_t flags = 0) {
    const RecordHead head{header, flags, values.size()};
    copy_to_device(record_.data(), &head, sizeof head, queue);
    if (!values.empty())
      copy_to_device(record_.data() + sizeof head, values.data(), values.size() * sizeof(double), queue);
  }

 private:
  std::size_t count_;
  Buffer<std::byte> record_, room_;
};

/// What an exchange left, on the host. Waits for the queue.
struct Received {
  std::vector<RecordHead> heads{};  // (ranks)
  std::vector<double> sum{};        // in rank order where records were gathered
};
inline Received received(const Gathered& gathered, std::size_t count, Queue& queue) {
  const auto ranks = static_cast<std::size_t>(gathered.ranks);
  std::vector<std::byte> bytes((ranks - 1) * gathered.stride + sizeof(RecordHead) +
                               (gathered.sums == nullptr ? count * sizeof(double) : 0));
  copy_to_host(bytes.data(), gathered.records, bytes.size(), queue);
  Received result;
  result.heads.resize(ranks);
  result.sum.assign(count, 0.0);
  if (gathered.sums != nullptr) copy_to_host(result.sum.data(), gathered.sums, count * sizeof(double), queue);
  queue.wait();
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const std::byte* at = bytes.data() + rank * gathered.stride;
    std::memcpy(&result.heads[rank], at, sizeof(RecordHead));
    for (std::size_t i = 0; gathered.sums == nullptr && i < count; ++i) {
      double value;
      std::memcpy(&value, at + sizeof(RecordHead) + i * sizeof value, sizeof value);
      result.sum[i] += value;
    }
  }
  return result;
}

/// What kernels do with a report, as functions in the stream's order: an exchange begins, or is done.
inline void report_begun(const Reporter& reporter, Queue& queue) {
  const auto advance = [](void* report) { ++std::atomic_ref(static_cast<ExchangeReport*>(report)->started); };
  ASSERT_EQ(cudaLaunchHostFunc(stream_of_queue(queue), advance, reporter.report), cudaSuccess);
}
inline void report_done(const Reporter& reporter, Queue& queue) {
  const auto advance = [](void* report) { ++std::atomic_ref(static_cast<ExchangeReport*>(report)->finished); };
  ASSERT_EQ(cudaLaunchHostFunc(stream_of_queue(queue), advance, reporter.report), cudaSuccess);
}

/// "CODE: MESSAGE" of the first Error that check() throws within 20 s; empty when there is none.
inline std::string found_by(Communicator& group, double seconds = 20) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    try {
      group.check();
    } catch (const Error& error) {
      return std::string(to_string(error.code())) + ": " + error.message();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return {};
}

}  // namespace allnorm::test
