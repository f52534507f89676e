// Queues are made here, above the kernels whose table they carry.
#include <memory>
#include <string>

#include "allnorm/device.hpp"
#include "allnorm/error.hpp"
#include "kernels/ops.hpp"
#include "src/runtime/parallel.hpp"

namespace allnorm {

Queue Queue::cpu(int threads) {
  expect(threads >= 1, Code::invalid_argument,
         [&] { return "threads is " + std::to_string(threads) + ", must be at least 1"; });
  return Queue(Device{}, cpu_ops(), std::make_shared<CpuQueue>(threads));
}

}  // namespace allnorm
