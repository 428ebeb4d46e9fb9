// What the CUDA kernel of a solver step is given; see csrc/fuse_step.cu.
#pragma once

#include <cstdint>

#include "fuse_step.h"
#include "noise.h"

namespace scorefusion {

constexpr int kMaxCudaBranches = 32;
constexpr int kCudaTile = 32;  // edge of a tile in y and x; a block's edges there may not be longer

// A [B, C, D, H, W] tensor on the device; dtype as in csrc/view.h.
struct DeviceView {
    const void* data;
    int64_t stride[5];
    int dtype;
};

struct CudaStep {
    DeviceView scores[kMaxCudaBranches];
    DeviceView maps, x_t, x0_prev, measured;  // data is null where there is none
    float base[kMaxCudaBranches];
    float* x_next;  // contiguous, as x0
    float* x0;
    const float* rows;
    const int32_t* index;
    const NoiseKey* keys;
    int64_t size[5];
    int64_t factor[3];
    int branches;
    float gain, limit;
};

// Launches the kernel on a stream (a cudaStream_t as a number); returns an error's text, or null.
const char* launch_fuse_step(const CudaStep& step, uintptr_t stream);

}  // namespace scorefusion
