// Where a module's calls run: its own queue, or torch's current stream on its GPU.
#pragma once

#include <c10/core/Device.h>

#include "allnorm/device.hpp"

namespace allnorm::torch_adapter {

/// Whether modules can be on GPUs: the library and libtorch were both found with CUDA.
bool has_gpus() noexcept;

/// torch's name for the device of a module's queue. Throws unsupported for a GPU where this build of the adapter has
/// no CUDA (libtorch or the library was built without it).
c10::Device device_for(const Queue& own);

/// The queue for a call that is made now by a module made with `own`: `own` itself on a CPU; on a GPU a queue over
/// torch's current stream there, so that the call takes its place among torch's. There is one such queue for each
/// stream, made by the first call on it and kept to the end of the process: streams of torch's pool live as long, and
/// one that the caller brings must outlive the layers used on it. Like any queue it serves one thread at a time.
/// Throws as device_for.
Queue& current_queue(Queue& own);

}  // namespace allnorm::torch_adapter
