// Modules of libtorch on GPUs, as far as that can be told where libtorch has no CUDA.
#include "build_config.hpp"

#if ALLNORM_HAVE_TORCH

#include <gtest/gtest.h>

#include "adapters/torch/norm_module.hpp"
#include "adapters/torch/streams.hpp"
#include "harness.hpp"

namespace allnorm::test {
namespace {

using torch_adapter::NormModule;

TEST(ModulesOnGpus, AreNotForRanksAsThreads) {
  Queue queue = Queue::cuda();
  const auto worlds = threads(2);
  EXPECT_EQ(
      harness::error_of([&] { NormModule(Layer("batch_norm"), 3, worlds[0], queue, "bn"); }),
      "unsupported: ranks of modules on GPUs are threads, must be processes: libtorch runs the backward pass of one "
      "GPU on one thread");
}

TEST(ModulesOnGpus, NeedALibtorchWithCuda) {
  Queue queue = Queue::cuda();
  const std::string said = harness::error_of([&] { NormModule(Layer("batch_norm"), 3, nullptr, queue, "bn"); });
  EXPECT_EQ(said,
            torch_adapter::has_gpus()
                ? ""
                : "unsupported: device of the module's queue is cuda:0, must be cpu in this build: the library and "
                  "libtorch were not both found with CUDA");
}

}  // namespace
}  // namespace allnorm::test

#endif
