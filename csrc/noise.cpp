// The CPU loop of the noise: rows of x, in blocks that the compiler turns into vector instructions.
#include "noise.h"

#include <algorithm>

#include "common/bind.h"
#include "common/parallel.h"

namespace scorefusion {
namespace {

constexpr int kBlock = 64;  // groups of four voxels: 1 KiB of output, well inside the first-level cache
constexpr int kVector = 8;  // groups are computed in multiples of this, an AVX2 register of floats

// Normals of `vectors` * kVector <= kBlock groups from `group`, interleaved into out.
SF_VECTOR_CLONES
void normal_block(float* __restrict out, int vectors, uint32_t group, uint32_t y, uint32_t z, uint32_t channel,
                  uint32_t step, uint32_t sample, uint64_t seed) {
    float lanes[4][kBlock];
    const int count = vectors * kVector;
    for (int i = 0; i < count; ++i) {
        normal4(group + static_cast<uint32_t>(i), y, z, channel, step, sample, seed, lanes[0][i], lanes[1][i],
                lanes[2][i], lanes[3][i]);
    }
    for (int i = 0; i < count; ++i) {
        for (int lane = 0; lane < 4; ++lane) out[4 * i + lane] = lanes[lane][i];
    }
}

// Fills a contiguous float32 [B, C, D, H, W]; seeds and samples are one for each item, shape five sizes, origin (z, y, x).
void fill_normal(float* out, const int64_t* shape, const uint64_t* seeds, uint32_t step, const int64_t* origin,
                 const uint32_t* samples, int threads) {
    const int64_t channels = shape[1], depth = shape[2], height = shape[3], width = shape[4];
    const int64_t rows = shape[0] * channels * depth * height;
    if (rows == 0 || width == 0) return;
    const int64_t grain = std::max<int64_t>(1, 16384 / width);
    parallel_for(rows, grain, threads, [&](int64_t begin, int64_t end) {
        float block[4 * kBlock];
        for (int64_t row = begin; row < end; ++row) {
            const auto y = static_cast<uint32_t>(origin[1] + row % height);
            const auto z = static_cast<uint32_t>(origin[0] + row / height % depth);
            const auto channel = static_cast<uint32_t>(row / (height * depth) % channels);
            const int64_t item = row / (height * depth * channels);
            float* target = out + row * width;
            const int64_t last = origin[2] + width;
            for (int64_t x = origin[2]; x < last;) {
                const int64_t first = x / 4 * 4;
                const int64_t stop = std::min(last, first + 4 * kBlock);
                const int vectors = static_cast<int>((stop - first + 4 * kVector - 1) / (4 * kVector));
                normal_block(block, vectors, static_cast<uint32_t>(first / 4), y, z, channel, step,
                             samples[item], seeds[item]);
                std::memcpy(target + (x - origin[2]), block + (x - first), (stop - x) * sizeof(float));
                x = stop;
            }
        }
    });
}

}  // namespace

void bind_noise(pybind11::module_& m) {
    m.def(
        "normal",
        [](uintptr_t out, const std::array<int64_t, 5>& shape, const std::vector<uint64_t>& seeds, uint32_t step,
           const std::array<int64_t, 3>& origin, const std::vector<uint32_t>& samples, int threads) {
            const auto items = static_cast<size_t>(shape[0]);
            if (seeds.size() != items || samples.size() != items) {
                throw std::invalid_argument("one seed and one sample for each item");
            }
            pybind11::gil_scoped_release unlocked;
            fill_normal(reinterpret_cast<float*>(out), shape.data(), seeds.data(), step, origin.data(),
                        samples.data(), threads);
        },
        "Fill float32 [B, C, D, H, W] at address `out` with counter-based standard normals.");
}

}  // namespace scorefusion
