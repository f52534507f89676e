// Mean and centred sum of squares of every group; and with them the first half of a layer's forward call.
#include "kernels/cuda/fused.hpp"
#include "kernels/cuda/groupwise.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/moments.cuh"

namespace allnorm::cuda {

namespace {

void reduce_moments(const void* x, DType dtype, const Partition& partition, const MomentsEnd& end, Queue& queue) {
  visit(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    reduce(MomentsTask<T>{static_cast<const T*>(x), end}, canonical(partition), queue);
  });
}

}  // namespace

void moments(const MomentsArgs& args, Queue& queue) {
  reduce_moments(args.x, args.dtype, args.partition, {args.mean, args.m2, {}}, queue);
}

void forward_local(const ForwardArgs& args, Queue& queue) {
  if (groupwise_fits(args, properties_of(queue)) || fused_fits(args, queue)) return;  // the second half does it all
  if (args.record == nullptr) return reduce_moments(args.x, args.dtype, args.norm, {args.mean, args.m2, {}}, queue);
  const steps::Layout layout{args.norm.groups()};
  double* const payload = steps::payload_of(args.record);
  reduce_moments(args.x, args.dtype, args.norm, {payload + layout.mean(0), payload + layout.m2(0), ForwardRecord(args)},
                 queue);
}

}  // namespace allnorm::cuda
