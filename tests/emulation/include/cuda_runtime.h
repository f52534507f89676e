// The CUDA runtime on the CPU: stands in for CUDA's header of this name where there is no GPU to test on.
#pragma once

#if !defined(ALLNORM_CUDA_EMULATED)
#error "the emulated CUDA runtime needs ALLNORM_CUDA_EMULATED: the project's code asks for it"
#endif

#include "cuda_runtime_api.h"
#include "device_launch_parameters.h"
#include "emulation/device_math.h"
#include "emulation/device_memory.h"
#include "emulation/device_sync.h"
#include "emulation/launch.h"
#include "emulation/qualifiers.h"
#include "vector_functions.h"
#include "vector_types.h"
