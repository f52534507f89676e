// In builds without CUDA there are no ranks on GPUs.
#include "src/transport/device_threads.hpp"

namespace allnorm {

std::shared_ptr<DeviceHub> make_device_hub(std::vector<std::string>, const Patience&, std::vector<int>) {
  fail(Code::unsupported, "ranks exchange on a GPU, must be on the CPU: this build has no CUDA");
}

}  // namespace allnorm
