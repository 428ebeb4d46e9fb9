// Reading a view in tiles: rows of x that fit the first-level cache, whichever axis is contiguous in memory.
#pragma once

#include <cstdint>

#include "view.h"

namespace scorefusion {

constexpr int kTileY = 16;  // a cache line of floats along y, for views that are contiguous along y
constexpr int kTileX = 64;

// A tile's place in a [B, C, D, H, W] view: where it starts and how much of it there is.
struct Tile {
    int64_t item, channel, z, y, x;
    int rows, columns;
};

template <typename T>
SF_INLINE const T* tile_start(const View& view, const Tile& tile) {
    return static_cast<const T*>(view.data) + tile.item * view.stride[0] + tile.channel * view.stride[1] +
           tile.z * view.stride[2] + tile.y * view.stride[3] + tile.x * view.stride[4];
}

// Widens a tile into out, a row-major [kTileY, kTileX].
template <typename T>
SF_INLINE void load_tile_as(const View& view, const Tile& tile, float* __restrict out) {
    const T* __restrict source = tile_start<T>(view, tile);
    const int64_t dy = view.stride[3], dx = view.stride[4];
    if (dx == 1) {
        for (int y = 0; y < tile.rows; ++y) {
            for (int x = 0; x < tile.columns; ++x) out[y * kTileX + x] = to_float(source[y * dy + x]);
        }
    } else if (dy == 1) {
        for (int x = 0; x < tile.columns; ++x) {
            for (int y = 0; y < tile.rows; ++y) out[y * kTileX + x] = to_float(source[x * dx + y]);
        }
    } else {
        for (int y = 0; y < tile.rows; ++y) {
            for (int x = 0; x < tile.columns; ++x) out[y * kTileX + x] = to_float(source[y * dy + x * dx]);
        }
    }
}

SF_INLINE void load_tile(const View& view, const Tile& tile, float* __restrict out) {
    switch (view.dtype) {
        case DType::kBFloat16: load_tile_as<BFloat16>(view, tile, out); return;
        case DType::kFloat16: load_tile_as<Float16>(view, tile, out); return;
        default: load_tile_as<float>(view, tile, out); return;
    }
}

// Writes a row-major float tile to a float32 view.
SF_INLINE void store_tile(const View& view, const Tile& tile, const float* __restrict in) {
    float* __restrict target = const_cast<float*>(tile_start<float>(view, tile));
    for (int y = 0; y < tile.rows; ++y) {
        float* row = target + y * view.stride[3];
        if (view.stride[4] == 1) {
            for (int x = 0; x < tile.columns; ++x) row[x] = in[y * kTileX + x];
        } else {
            for (int x = 0; x < tile.columns; ++x) row[x * view.stride[4]] = in[y * kTileX + x];
        }
    }
}

}  // namespace scorefusion
