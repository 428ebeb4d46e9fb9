// The fused score, sum_k base_k s_k + sum_{k<K} w_k (s_k - s_K) + gain r, tile by tile.
#pragma once

#include <vector>

#include "common/tile.h"

namespace scorefusion {

constexpr int kMaxBranches = 32;

struct Fusion {
    std::vector<View> scores;  // K of [B, C, D, H, W]
    View maps;                 // [B, K, D, H, W], or none for the average alone
    std::vector<double> base;
    double gain;
};

// Writes the fused score of a tile into total, a row-major [kTileY, kTileX], while the next tile is on its way.
SF_INLINE void fuse_tile(const Fusion& fusion, const Tile& tile, const Tile& next, float* __restrict total) {
    alignas(64) float last_copy[kTileCells], other_copy[kTileCells], share_copy[kTileCells];
    const int branches = static_cast<int>(fusion.scores.size());
    const Floats last = read_tile(fusion.scores[branches - 1], tile, last_copy);
    prefetch_tile(fusion.scores[branches - 1], next);
    const float own = static_cast<float>(fusion.base[branches - 1]);
    for (int y = 0; y < tile.rows; ++y) {
        const float* __restrict s = last.row(y);
        for (int x = 0; x < tile.columns; ++x) total[y * kTileX + x] = own * s[x];
    }
    Tile map = tile, next_map = next;
    for (int k = 0; k + 1 < branches; ++k) {
        const float weight = static_cast<float>(fusion.base[k]);
        const Floats other = read_tile(fusion.scores[k], tile, other_copy);
        prefetch_tile(fusion.scores[k], next);
        map.channel = next_map.channel = k;
        if (fusion.maps) prefetch_tile(fusion.maps, next_map);
        const Floats share = fusion.maps ? read_tile(fusion.maps, map, share_copy) : other;
        for (int y = 0; y < tile.rows; ++y) {
            const float *s = other.row(y), *w = share.row(y), *end = last.row(y);
            float* __restrict sum = total + y * kTileX;
            if (fusion.maps) {
                for (int x = 0; x < tile.columns; ++x) sum[x] += weight * s[x] + w[x] * (s[x] - end[x]);
            } else {
                for (int x = 0; x < tile.columns; ++x) sum[x] += weight * s[x];
            }
        }
    }
    if (fusion.maps) {
        const float gain = static_cast<float>(fusion.gain);
        map.channel = next_map.channel = branches - 1;
        prefetch_tile(fusion.maps, next_map);
        const Floats residual = read_tile(fusion.maps, map, share_copy);
        for (int y = 0; y < tile.rows; ++y) {
            const float* __restrict r = residual.row(y);
            for (int x = 0; x < tile.columns; ++x) total[y * kTileX + x] += gain * r[x];
        }
    }
}

}  // namespace scorefusion
