// Reading a view in tiles: rows of x that fit the first-level cache, whichever axis is contiguous in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "parallel.h"
#include "transpose.h"
#include "view.h"

namespace scorefusion {

constexpr int kTileY = 16;  // a cache line of floats along y, for views that are contiguous along y
constexpr int kTileX = 64;
constexpr int kTileCells = kTileY * kTileX;

// A tile's place in a [B, C, D, H, W] view: where it starts and how much of it there is.
struct Tile {
    int64_t item, channel, z, y, x;
    int rows, columns;
};

// A tile as floats along x: a place in the view itself where it is that already, else a copy.
struct Floats {
    const float* data;
    int64_t stride;

    SF_INLINE const float* row(int y) const { return data + y * stride; }
};

SF_INLINE int64_t start_of(const View& view, const Tile& tile) {
    return view.at(tile.item, tile.channel, tile.z, tile.y, tile.x);
}

template <typename T>
SF_INLINE const T* tile_start(const View& view, const Tile& tile) {
    return static_cast<const T*>(view.data) + start_of(view, tile);
}

// Widens a tile that does not run along x into out, a row-major [kTileY, kTileX].
template <typename T>
SF_INLINE void gather_tile(const View& view, const Tile& tile, float* __restrict out) {
    const T* __restrict source = tile_start<T>(view, tile);
    const int64_t dy = view.stride[3], dx = view.stride[4];
    int x = 0;
    if (dy == 1 && tile.rows == kTileY) {
        for (; x + 4 <= tile.columns; x += 4) {
            alignas(64) float columns[4 * kTileY];
            const float* lines[4];
            for (int i = 0; i < 4; ++i) {
                const T* __restrict from = source + (x + i) * dx;
                if constexpr (std::is_same_v<T, float>) {
                    lines[i] = from;
                } else {
                    lines[i] = columns + i * kTileY;
                    for (int y = 0; y < kTileY; ++y) columns[i * kTileY + y] = to_float(from[y]);
                }
            }
            for (int y = 0; y < kTileY; y += 4) transpose(lines, y, out + y * kTileX + x, kTileX);
        }
    }
    for (int y = 0; y < tile.rows; ++y) {
        for (int i = x; i < tile.columns; ++i) out[y * kTileX + i] = to_float(source[y * dy + i * dx]);
    }
}

template <typename T>
SF_INLINE void widen_tile(const View& view, const Tile& tile, float* __restrict out) {
    if (view.stride[4] != 1) return gather_tile<T>(view, tile, out);
    const T* __restrict source = tile_start<T>(view, tile);
    for (int y = 0; y < tile.rows; ++y) {
        const T* __restrict row = source + y * view.stride[3];
        for (int x = 0; x < tile.columns; ++x) out[y * kTileX + x] = to_float(row[x]);
    }
}

// Calls body(box) for boxes of deep x high x wide voxels that fill every channel of a [B, C, D, H, W] view, strips of
// them shared among threads; at the far edges of y and x there is less of a box.
template <typename Body>
void for_boxes(const View& view, int64_t deep, int64_t high, int64_t wide, int threads, const Body& body) {
    const int64_t channels = view.size[1], height = view.size[3], width = view.size[4];
    const int64_t layers = view.size[2] / deep, strips = (height + high - 1) / high;
    const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(deep * high * width, 1));
    parallel_for(view.size[0] * channels * layers * strips, grain, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t layer = i / strips, y = i % strips * high;
            for (int64_t x = 0; x < width; x += wide) {
                body(Tile{layer / layers / channels, layer / layers % channels, layer % layers * deep, y, x,
                          static_cast<int>(std::min(high, height - y)), static_cast<int>(std::min(wide, width - x))});
            }
        }
    });
}

// The tile after this one in a box: along x, then y, then z, where the next is `deep` planes on.
inline Tile following(const Tile& tile, const View& box, int64_t deep) {
    Tile next = tile;
    next.x += tile.columns;
    if (next.x < box.size[4]) return next;
    next.x = 0;
    next.y += tile.rows;
    if (next.y < box.size[3]) return next;
    next.y = 0;
    next.z += deep;
    return next;
}

// Asks for a tile's cache lines ahead of time, to be read or written; one outside the view does no harm.
template <bool kWrite = false>
SF_INLINE void prefetch_tile(const View& view, const Tile& tile) {
#if defined(__GNUC__)
    const int64_t each = view.element_size();
    const bool along_x = view.stride[4] == 1;
    if (!along_x && view.stride[3] != 1) return;
    const char* const start = static_cast<const char*>(view.data) + each * start_of(view, tile);
    const int64_t pitch = each * (along_x ? view.stride[3] : view.stride[4]);
    const int64_t bytes = each * (along_x ? tile.columns : tile.rows);
    const int lines = along_x ? tile.rows : tile.columns;
    for (int i = 0; i < lines; ++i) {
        for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(start + i * pitch + byte, kWrite ? 1 : 0, 2);
    }
#endif
}

// Returns a tile as floats; out [kTileY, kTileX] holds it where it had to be widened or turned around.
SF_INLINE Floats read_tile(const View& view, const Tile& tile, float* __restrict out) {
    switch (view.dtype) {
        case DType::kBFloat16: widen_tile<BFloat16>(view, tile, out); break;
        case DType::kFloat16: widen_tile<Float16>(view, tile, out); break;
        default:
            if (view.stride[4] == 1) return {tile_start<float>(view, tile), view.stride[3]};
            gather_tile<float>(view, tile, out);
    }
    return {out, kTileX};
}

// The first voxel of a tile, widened.
SF_INLINE float load_voxel(const View& view, const Tile& tile) {
    switch (view.dtype) {
        case DType::kBFloat16: return to_float(*tile_start<BFloat16>(view, tile));
        case DType::kFloat16: return to_float(*tile_start<Float16>(view, tile));
        default: return *tile_start<float>(view, tile);
    }
}

// The start of a row of a tile in a contiguous float32 view.
SF_INLINE float* row_of(const View& view, const Tile& tile, int y) {
    return const_cast<float*>(tile_start<float>(view, tile)) + y * view.stride[3];
}

}  // namespace scorefusion
