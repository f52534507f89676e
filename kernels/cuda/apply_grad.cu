// dx = weight * g * gain + (x - center) * power * slope + offset, and dresidual = g, g being dy behind the gate.
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/map.cuh"

namespace allnorm::cuda {

void apply_grad(const ApplyGradArgs& args, Queue& queue) {
  if (args.partition.elements() == 0 || (args.dx == nullptr && args.dresidual == nullptr)) return;
  run_apply_grad(
      queue, args,
      GivenGrad{args.center, args.power, args.gate.scale, args.gate.shift, args.gain, args.slope, args.offset});
}

}  // namespace allnorm::cuda
