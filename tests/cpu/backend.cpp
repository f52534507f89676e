// Tests on the CPU.
#include "backend.hpp"

#include <new>

namespace backend {

allnorm::Queue queue(int threads) { return allnorm::Queue::cpu(threads); }
allnorm::Device device() { return {}; }
const double statistics_unit = 0;
const bool takes_some = false;
void* allocate(std::size_t bytes) { return ::operator new(bytes); }
void release(void* data) noexcept { ::operator delete(data); }

}  // namespace backend
