// Tests on the CPU.
#include "backend.hpp"

#include <new>

#include "kernels/cpu/kernels.hpp"
#include "launch/reference/definitions.hpp"

namespace backend {

allnorm::Queue queue(int threads) { return allnorm::Queue::cpu(threads); }
allnorm::Device device() { return {}; }
double statistics_unit(allnorm::DType dtype) { return reference::statistics_unit(dtype, false); }
const bool takes_some = false;
void* allocate(std::size_t bytes) { return ::operator new(bytes); }
void release(void* data) noexcept { ::operator delete(data); }

void affine_grad(const allnorm::AffineGradArgs& args, allnorm::Queue& queue) { allnorm::cpu::affine_grad(args, queue); }
void patch_sums(const allnorm::PatchSumsArgs& args, allnorm::Queue& queue) { allnorm::cpu::patch_sums(args, queue); }

}  // namespace backend
