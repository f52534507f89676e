// A build without CUDA: there is no GPU, and the reason is one line.
#include <string>

#include "allnorm/device.hpp"
#include "allnorm/error.hpp"
#include "src/gpu.hpp"
#include "src/gpu_timing.hpp"
#include "src/runtime/queue.hpp"

namespace allnorm {

namespace {
[[noreturn]] void refuse(int index) {
  fail(Code::unsupported,
       "device is " + to_string({DeviceKind::cuda, index}) + ", must be cpu: this build has no CUDA");
}
}  // namespace

Queue Queue::cuda(int index) { refuse(index); }
Queue Queue::cuda(int index, void*) { refuse(index); }

int cuda_devices() noexcept { return 0; }
std::string cuda_summary() { return "this build has no CUDA"; }

void expect_host_memory(const void*, const char*) {}

std::shared_ptr<std::byte> pinned_memory(std::size_t, int index) { refuse(index); }
std::byte* lasting_memory(std::size_t, int index) { refuse(index); }
std::shared_ptr<std::byte> gpu_memory(std::size_t, int index) { refuse(index); }
std::shared_ptr<void> current_gpu(const Queue&) { return nullptr; }
std::string gpu_identity(int index) { refuse(index); }
GpuFacts gpu_facts(int index) { refuse(index); }
std::shared_ptr<LoneReports> lone_reports(int index, const std::string&) { refuse(index); }
bool is_captured(Queue&) { return false; }

std::vector<double> times_between_events(void*, std::size_t, const std::function<void(std::size_t)>&) { refuse(0); }
Replay captured(void*, const std::function<void()>&) { refuse(0); }

}  // namespace allnorm
