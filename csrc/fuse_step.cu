// One solver step on CUDA without Triton: the arithmetic of csrc/fuse_step.h, a tile of whole blocks at a time.
//
// A thread has four neighbouring voxels of x, one Philox counter where they are aligned to it. A stack of sagittal
// slices runs along y, so its tiles are read along y and turned around in shared memory. The first pass over the
// depth of a block writes x0 before projecting and sums the blocks; the second reads the same thread's x0 back.
#include "fuse_step.h"

#include <cuda_runtime.h>

#include "cuda/fuse_step_cuda.h"
#include "noise.h"
#include "common/view.h"

namespace scorefusion {
namespace {

constexpr int kLanes = 4;                              // voxels of a thread
constexpr int kGroups = kCudaTile / kLanes;            // threads along x
constexpr int kThreads = kCudaTile * kGroups;          // 256
constexpr int kPitch = kCudaTile + 1;                  // of a row in shared memory, against bank conflicts
static_assert(kPitch * kCudaTile * sizeof(float) < 48 * 1024, "a tile fits static shared memory");

// Where a tile lies, and what of it is inside the volume and its blocks.
struct Box {
    int64_t item, channel, z, y, x;
    int rows, columns;
};

__device__ __forceinline__ float load_as_float(const DeviceView& view, int64_t offset) {
    switch (static_cast<DType>(view.dtype)) {
        case DType::kBFloat16: return to_float(static_cast<const BFloat16*>(view.data)[offset]);
        case DType::kFloat16: return to_float(static_cast<const Float16*>(view.data)[offset]);
        default: return static_cast<const float*>(view.data)[offset];
    }
}

// Loads a thread's four voxels of a tile; every thread of the block must call it.
__device__ __forceinline__ void load_lanes(const DeviceView& view, const Box& box, float (&tile)[kCudaTile][kPitch],
                                           float (&out)[kLanes]) {
    const int64_t start = box.item * view.stride[0] + box.channel * view.stride[1] + box.z * view.stride[2] +
                          box.y * view.stride[3] + box.x * view.stride[4];
    const int row = threadIdx.x / kGroups, column = threadIdx.x % kGroups * kLanes;
    if (view.stride[4] != 1 && view.stride[3] == 1) {
        __syncthreads();
        for (int i = threadIdx.x; i < kCudaTile * kCudaTile; i += kThreads) {
            const int y = i % kCudaTile, x = i / kCudaTile;
            if (y < box.rows && x < box.columns) tile[y][x] = load_as_float(view, start + y + x * view.stride[4]);
        }
        __syncthreads();
        for (int i = 0; i < kLanes; ++i) out[i] = tile[row][column + i];
        return;
    }
    const int64_t offset = start + row * view.stride[3] + column * view.stride[4];
    const float* address = static_cast<const float*>(view.data) + offset;
    if (static_cast<DType>(view.dtype) == DType::kFloat32 && view.stride[4] == 1 && row < box.rows &&
        column + kLanes <= box.columns && reinterpret_cast<uintptr_t>(address) % 16 == 0) {
        const float4 four = *reinterpret_cast<const float4*>(address);
        out[0] = four.x, out[1] = four.y, out[2] = four.z, out[3] = four.w;
        return;
    }
    for (int i = 0; i < kLanes; ++i) {
        const bool inside = row < box.rows && column + i < box.columns;
        out[i] = inside ? load_as_float(view, offset + i * view.stride[4]) : 0.0f;
    }
}

// Standard normals of four neighbouring voxels from x of the box.
__device__ __forceinline__ void load_noise(const CudaStep& step, const Box& box, int row, int64_t x, uint32_t number,
                                           float (&out)[kLanes]) {
    const NoiseKey& key = step.keys[box.item];
    x += key.x;
    const auto y = static_cast<uint32_t>(key.y + box.y + row), z = static_cast<uint32_t>(key.z + box.z);
    const auto channel = static_cast<uint32_t>(box.channel), sample = static_cast<uint32_t>(key.sample);
    const auto group = static_cast<uint32_t>(x / 4);
    const int shift = static_cast<int>(x % 4);
    float a[kLanes], b[kLanes] = {};
    normal4(group, y, z, channel, number, sample, key.seed, a[0], a[1], a[2], a[3]);
    if (shift != 0) normal4(group + 1, y, z, channel, number, sample, key.seed, b[0], b[1], b[2], b[3]);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
        const float from_a = shift + i == 0 ? a[0] : shift + i == 1 ? a[1] : shift + i == 2 ? a[2] : a[3];
        const float from_b = shift + i == 4 ? b[0] : shift + i == 5 ? b[1] : b[2];
        out[i] = shift + i < 4 ? from_a : from_b;
    }
}

__device__ __forceinline__ void load_fused(const CudaStep& step, const Box& box, float (&tile)[kCudaTile][kPitch],
                                           float (&total)[kLanes]) {
    float last[kLanes], score[kLanes], share[kLanes];
    load_lanes(step.scores[step.branches - 1], box, tile, last);
    for (int i = 0; i < kLanes; ++i) total[i] = step.base[step.branches - 1] * last[i];
    Box map = box;
    for (int k = 0; k + 1 < step.branches; ++k) {
        load_lanes(step.scores[k], box, tile, score);
        for (int i = 0; i < kLanes; ++i) total[i] += step.base[k] * score[i];
        if (step.maps.data == nullptr) continue;
        map.channel = k;
        load_lanes(step.maps, map, tile, share);
        for (int i = 0; i < kLanes; ++i) total[i] += share[i] * (score[i] - last[i]);
    }
    if (step.maps.data == nullptr) return;
    map.channel = step.branches - 1;
    load_lanes(step.maps, map, tile, share);
    for (int i = 0; i < kLanes; ++i) total[i] += step.gain * share[i];
}

// Replaces the tile's sums over z by what each voxel is to lose: its block's mean, less the measured one.
__device__ __forceinline__ void find_excess(const CudaStep& step, const Box& box, float (&tile)[kCudaTile][kPitch]) {
    const int ry = static_cast<int>(step.factor[1]), rx = static_cast<int>(step.factor[2]);
    const int across = box.columns / rx, count = box.rows / ry * across;
    const float share = 1.0f / static_cast<float>(step.factor[0] * ry * rx);
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const int y = i / across * ry, x = i % across * rx;
        float sum = 0.0f;
        for (int j = 0; j < ry * rx; ++j) sum += tile[y + j / rx][x + j % rx];
        sum *= share;
        if (step.measured.data != nullptr) {
            const DeviceView& view = step.measured;
            sum -= load_as_float(view, box.item * view.stride[0] + box.channel * view.stride[1] +
                                           box.z / step.factor[0] * view.stride[2] +
                                           (box.y + y) / ry * view.stride[3] + (box.x + x) / rx * view.stride[4]);
        }
        for (int j = 0; j < ry * rx; ++j) tile[y + j / rx][x + j % rx] = sum;
    }
    __syncthreads();
}

__global__ void __launch_bounds__(kThreads, 2) fuse_step_kernel(const __grid_constant__ CudaStep step) {
    __shared__ float tile[kCudaTile][kPitch], sums[kCudaTile][kPitch];
    const int64_t height = step.size[3], width = step.size[4];
    const int64_t high = step.factor[1] * (kCudaTile / step.factor[1]);
    const int64_t wide = step.factor[2] * (kCudaTile / step.factor[2]);
    const int64_t across = (width + wide - 1) / wide, layers = step.size[2] / step.factor[0];
    const bool projects = step.factor[0] * step.factor[1] * step.factor[2] > 1;
    const uint32_t number = static_cast<uint32_t>(*step.index);
    const StepRow row = reinterpret_cast<const StepRow*>(step.rows)[number];
    const int64_t y = blockIdx.x / across * high, x = blockIdx.x % across * wide;
    const int own_row = threadIdx.x / kGroups, column = threadIdx.x % kGroups * kLanes;
    for (int64_t plane = blockIdx.y; plane < step.size[0] * step.size[1] * layers; plane += gridDim.y) {
        const int64_t first = plane % layers * step.factor[0];
        Box box{plane / layers / step.size[1],
                plane / layers % step.size[1],
                first,
                y,
                x,
                static_cast<int>(min(high, height - y)),
                static_cast<int>(min(wide, width - x))};
        const int64_t start =
            (((box.item * step.size[1] + box.channel) * step.size[2] + first) * height + y + own_row) * width + x +
            column;
        const int64_t lanes = own_row < box.rows ? box.columns - column : 0;
        float sum[kLanes] = {}, now[kLanes], m[kLanes], before[kLanes] = {}, z[kLanes] = {};
        for (int64_t i = 0; i < step.factor[0]; ++i) {
            box.z = first + i;
            load_fused(step, box, tile, m);
            load_lanes(step.x_t, box, tile, now);
#pragma unroll
            for (int lane = 0; lane < kLanes; ++lane) {
                const float clean = clean_voxel(row, now[lane], m[lane], step.limit);
                sum[lane] += clean;
                if (lane < lanes) step.x0[start + i * height * width + lane] = clean;
            }
        }
        if (projects) {
            box.z = first;
            for (int lane = 0; lane < kLanes; ++lane) sums[own_row][column + lane] = sum[lane];
            find_excess(step, box, sums);
        }
        for (int64_t i = 0; i < step.factor[0]; ++i) {
            box.z = first + i;
            load_lanes(step.x_t, box, tile, now);
            if (row.c != 0.0f) load_lanes(step.x0_prev, box, tile, before);
            if (row.s != 0.0f) load_noise(step, box, own_row, x + column, number + 1, z);
#pragma unroll
            for (int lane = 0; lane < kLanes; ++lane) {
                if (lane >= lanes) continue;
                const int64_t place = start + i * height * width + lane;
                float clean = step.x0[place];
                if (projects) clean -= sums[own_row][column + lane];
                step.x0[place] = clean;
                step.x_next[place] = next_voxel(row, now[lane], clean, before[lane], z[lane]);
            }
        }
        __syncthreads();
    }
}

}  // namespace

const char* launch_fuse_step(const CudaStep& step, uintptr_t stream) {
    const int64_t high = step.factor[1] * (kCudaTile / step.factor[1]);
    const int64_t wide = step.factor[2] * (kCudaTile / step.factor[2]);
    const int64_t tiles = ((step.size[3] + high - 1) / high) * ((step.size[4] + wide - 1) / wide);
    const int64_t planes = step.size[0] * step.size[1] * (step.size[2] / step.factor[0]);
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(planes < 65535 ? planes : 65535));
    fuse_step_kernel<<<grid, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(step);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace scorefusion
