// The noise of a tile of voxels, in loops that the compiler turns into vector instructions.
#pragma once

#include "common/tile.h"
#include "noise.h"

namespace scorefusion {

constexpr int kTileGroups = kTileX / 4 + 1;  // groups of four that a row of a tile may touch
constexpr int kTileLanes = kTileY * kTileGroups;
static_assert(kTileLanes % 16 == 0, "lanes are computed in whole vectors");

// Standard normals of a tile, rows of 4 * groups; the tile's first voxel is at the returned place of a row.
SF_INLINE int noise_tile(const NoiseKey& key, uint32_t step, const Tile& tile, float* __restrict out, int& width) {
    alignas(64) uint32_t counters[kTileLanes];
    alignas(64) float lanes[4][kTileLanes];
    const int64_t first = key.x + tile.x;
    const auto group = static_cast<uint32_t>(first / 4);
    const int groups = static_cast<int>((first + tile.columns + 3) / 4 - first / 4);
    const int count = tile.rows * groups;
    for (int y = 0; y < tile.rows; ++y) {
        const auto high = static_cast<uint32_t>(key.y + tile.y + y) << 16;
        for (int i = 0; i < groups; ++i) counters[y * groups + i] = high | (group + static_cast<uint32_t>(i));
    }
    const int padded = (count + 15) / 16 * 16;
    for (int i = count; i < padded; ++i) counters[i] = 0;
    const auto z = static_cast<uint32_t>(key.z + tile.z);
    const auto channel = static_cast<uint32_t>(tile.channel), sample = static_cast<uint32_t>(key.sample);
    const uint64_t seed = key.seed;
    for (int i = 0; i < padded; ++i) {
        normal4(counters[i], 0, z, channel, step, sample, seed, lanes[0][i], lanes[1][i], lanes[2][i],
                lanes[3][i]);
    }
    for (int i = 0; i < padded; ++i) {
        for (int lane = 0; lane < 4; ++lane) out[4 * i + lane] = lanes[lane][i];
    }
    width = 4 * groups;
    return static_cast<int>(first % 4);
}

}  // namespace scorefusion
