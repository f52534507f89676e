// Mean and centred sum of squares of every group.
#include "kernels/cuda/moments.cuh"

#include "kernels/cuda/halves.hpp"
#include "kernels/cuda/kernels.hpp"

namespace allnorm::cuda {

namespace {

void reduce_to(const MomentsEnd& end, const void* x, DType dtype, const Partition& partition, Queue& queue) {
  visit(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    reduce(MomentsTask<T>{static_cast<const T*>(x), end}, canonical(partition), queue);
  });
}

}  // namespace

void moments(const MomentsArgs& args, Queue& queue) {
  reduce_to({args.mean, args.m2, {}}, args.x, args.dtype, args.partition, queue);
}

void reduce_moments(const ForwardArgs& args, Queue& queue) {
  MomentsEnd end{args.mean, args.m2, {}};
  if (args.record != nullptr) {
    const steps::Layout layout{args.norm.groups()};
    double* const payload = steps::payload_of(args.record);
    end = {payload + layout.mean(0), payload + layout.m2(0), ForwardRecord(args)};
  }
  reduce_to(end, args.x, args.dtype, args.norm, queue);
}

}  // namespace allnorm::cuda
