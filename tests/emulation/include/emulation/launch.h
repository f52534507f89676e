// Kernel launches: the arguments are copied when the launch is made, and each thread of the grid gets its own copy.
#pragma once

#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"

namespace cuda_emulation::detail {

/// Checks the configuration and queues the grid. `body` is the kernel with its arguments, `function` its identity.
cudaError_t launch(const char* call, const cudaLaunchConfig_t& config, const void* function,
                   std::function<void()> body);

template <class... A>
cudaError_t launch_arrays(const char* call, bool cooperative, void (*kernel)(A...), dim3 grid, dim3 block, void** args,
                          size_t dynamic_shared, cudaStream_t stream) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative ? 1 : 0;
  const cudaLaunchConfig_t config{grid, block, dynamic_shared, stream, &attribute, 1};
  std::function<void()> body;
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    std::tuple<std::remove_cv_t<A>...> values(*static_cast<std::remove_cv_t<A>*>(args[I])...);
    body = [kernel, values = std::move(values)] { std::apply(kernel, values); };
  }
  (std::index_sequence_for<A...>{});
  return launch(call, config, reinterpret_cast<const void*>(kernel), std::move(body));
}

}  // namespace cuda_emulation::detail

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments));
  std::tuple<std::remove_cv_t<Parameters>...> values(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  return cuda_emulation::detail::launch("cudaLaunchKernelEx", *config, reinterpret_cast<const void*>(kernel),
                                        [kernel, values = std::move(values)] { std::apply(kernel, values); });
}

/// Only with the kernel's own type: a bare address does not say what the arguments are.
template <class... A>
cudaError_t cudaLaunchKernel(void (*kernel)(A...), dim3 grid, dim3 block, void** args, size_t dynamic_shared = 0,
                             cudaStream_t stream = nullptr) {
  return cuda_emulation::detail::launch_arrays("cudaLaunchKernel", false, kernel, grid, block, args, dynamic_shared,
                                               stream);
}
template <class... A>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(A...), dim3 grid, dim3 block, void** args,
                                        size_t dynamic_shared = 0, cudaStream_t stream = nullptr) {
  return cuda_emulation::detail::launch_arrays("cudaLaunchCooperativeKernel", true, kernel, grid, block, args,
                                               dynamic_shared, stream);
}
