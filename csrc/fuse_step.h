// The arithmetic of one solver step at a voxel, for the CPU loop and the CUDA kernel alike.
//
//     x0 = project(clamp(P x_t + Q m))         x' = A x_t + B x0 + C x0_prev + S z
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace scorefusion {

// A row of the solver's table, as it lies in memory.
struct StepRow {
    float p, q, a, b, c, s;
};

// The clean voxel before projecting; limit is infinity where nothing is clamped. NaN stays NaN.
SF_INLINE float clean_voxel(const StepRow& row, float x_t, float m, float limit) {
    const float x0 = row.p * x_t + row.q * m;
    return x0 < -limit ? -limit : (x0 > limit ? limit : x0);
}

// The next voxel. A term whose coefficient is zero is left out, so that what it would read may be anything.
SF_INLINE float next_voxel(const StepRow& row, float x_t, float x0, float x0_prev, float z) {
    float x = row.b * x0;
    x = row.a != 0.0f ? row.a * x_t + x : x;
    x = row.c != 0.0f ? x + row.c * x0_prev : x;
    return row.s != 0.0f ? x + row.s * z : x;
}

}  // namespace scorefusion
