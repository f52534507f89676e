// The CPU backend's table.
#include "kernels/ops.hpp"

#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ops.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <string>

#include "kernels/cpu/kernels.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {
const char* target_name() { return hwy::TargetName(HWY_TARGET); }
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm {
namespace cpu {
HWY_EXPORT(target_name);
static std::string backend_name() { return std::string("cpu (") + HWY_DYNAMIC_DISPATCH(target_name)() + ")"; }
}  // namespace cpu

const Ops& cpu_ops() {
  static const std::string name = cpu::backend_name();
  static const Ops ops{.name = name.c_str(),
                       .moments = cpu::moments,
                       .apply = cpu::apply,
                       .moments_grad = cpu::moments_grad,
                       .apply_grad = cpu::apply_grad,
                       .neighbours = cpu::neighbours,
                       .neighbours_grad = cpu::neighbours_grad,
                       .matrix_product = cpu::matrix_product,
                       .channel_products = cpu::channel_products,
                       .channel_map = cpu::channel_map,
                       .each = cpu::each,
                       .forward_local = cpu::forward_local,
                       .forward_finish = cpu::forward_finish,
                       .backward_local = cpu::backward_local,
                       .backward_finish = cpu::backward_finish,
                       .products = cpu::products,
                       .derivatives = cpu::derivatives,
                       .begin_batch = cpu::begin_batch};
  return ops;
}

}  // namespace allnorm
#endif
