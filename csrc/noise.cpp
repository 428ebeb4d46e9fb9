// The CPU loop of the noise, tile by tile.
#include "common/bind.h"
#include "noise_tile.h"

namespace scorefusion {
namespace {

SF_VECTOR_CLONES
void fill_tile(const NoiseKey& key, uint32_t step, const View& out, const Tile& tile) {
    alignas(64) float noise[4 * kTileLanes];
    int width;
    const int start = noise_tile(key, step, tile, noise, width);
    for (int y = 0; y < tile.rows; ++y) {
        std::memcpy(row_of(out, tile, y), noise + y * width + start, tile.columns * sizeof(float));
    }
}

}  // namespace

void bind_noise(pybind11::module_& m) {
    m.def(
        "normal",
        [](uintptr_t data, const std::array<int64_t, 5>& shape, const std::vector<uint64_t>& seeds, uint32_t step,
           const std::array<int64_t, 3>& origin, const std::vector<uint32_t>& samples, int threads) {
            const auto items = static_cast<size_t>(shape[0]);
            if (seeds.size() != items || samples.size() != items) {
                throw std::invalid_argument("one seed and one sample for each item");
            }
            pybind11::gil_scoped_release unlocked;
            View out{reinterpret_cast<void*>(data), DType::kFloat32, 5};
            int64_t stride = 1;
            for (int axis = 4; axis >= 0; stride *= shape[axis--]) {
                out.size[axis] = shape[axis];
                out.stride[axis] = stride;
            }
            for_boxes(out, 1, kTileY, kTileX, threads, [&](const Tile& tile) {
                const NoiseKey key{seeds[tile.item], samples[tile.item], origin[0], origin[1], origin[2]};
                fill_tile(key, step, out, tile);
            });
        },
        "Fill float32 [B, C, D, H, W] at address `data` with counter-based standard normals.");
}

}  // namespace scorefusion
