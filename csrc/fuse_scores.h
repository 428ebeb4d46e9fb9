// The fused score, sum_k base_k s_k + sum_{k<K} w_k (s_k - s_K) + gain r, tile by tile.
#pragma once

#include <vector>

#include "tile.h"

namespace scorefusion {

constexpr int kMaxBranches = 32;

struct Fusion {
    std::vector<View> scores;  // K of [B, C, D, H, W]
    const View* maps;          // [B, K, D, H, W], or null for the average alone
    std::vector<double> base;
    double gain;
};

// Writes the fused score of a tile into total; last and other are scratch. All three are [kTileY, kTileX].
SF_INLINE void fuse_tile(const Fusion& fusion, const Tile& tile, float* __restrict total, float* __restrict last,
                         float* __restrict other) {
    const int branches = static_cast<int>(fusion.scores.size());
    const int cells = kTileY * kTileX;
    float share[kTileY * kTileX];
    load_tile(fusion.scores[branches - 1], tile, last);
    const float own = static_cast<float>(fusion.base[branches - 1]);
    for (int i = 0; i < cells; ++i) total[i] = own * last[i];
    Tile map = tile;
    for (int k = 0; k + 1 < branches; ++k) {
        const float weight = static_cast<float>(fusion.base[k]);
        load_tile(fusion.scores[k], tile, other);
        if (fusion.maps == nullptr) {
            for (int i = 0; i < cells; ++i) total[i] += weight * other[i];
        } else {
            map.channel = k;
            load_tile(*fusion.maps, map, share);
            for (int i = 0; i < cells; ++i) total[i] += weight * other[i] + share[i] * (other[i] - last[i]);
        }
    }
    if (fusion.maps != nullptr) {
        const float gain = static_cast<float>(fusion.gain);
        map.channel = branches - 1;
        load_tile(*fusion.maps, map, share);
        for (int i = 0; i < cells; ++i) total[i] += gain * share[i];
    }
}

}  // namespace scorefusion
