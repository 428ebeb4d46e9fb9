// Reading a view in tiles: rows of x that fit the first-level cache, whichever axis is contiguous in memory.
#pragma once

#include <cstdint>

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

template <typename T>
SF_INLINE const T* tile_start(const View& view, const Tile& tile) {
    return static_cast<const T*>(view.data) + tile.item * view.stride[0] + tile.channel * view.stride[1] +
           tile.z * view.stride[2] + tile.y * view.stride[3] + tile.x * view.stride[4];
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SF_HAS_SHUFFLES
#endif
#endif

// Turns count columns [4, kTileY] around: out[y][x] = in[x][y] for four x and all y of a tile.
SF_INLINE void turn_columns(const float* __restrict in, float* __restrict out) {
#if defined(SF_HAS_SHUFFLES)
    typedef float Four __attribute__((vector_size(16)));
    for (int y = 0; y < kTileY; y += 4) {
        Four a, b, c, d;
        std::memcpy(&a, in + y, sizeof a);
        std::memcpy(&b, in + y + kTileY, sizeof b);
        std::memcpy(&c, in + y + 2 * kTileY, sizeof c);
        std::memcpy(&d, in + y + 3 * kTileY, sizeof d);
        const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        const Four rows[4] = {
            __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
            __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
        for (int i = 0; i < 4; ++i) std::memcpy(out + (y + i) * kTileX, &rows[i], sizeof(Four));
    }
#else
    for (int y = 0; y < kTileY; ++y) {
        for (int x = 0; x < 4; ++x) out[y * kTileX + x] = in[x * kTileY + y];
    }
#endif
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
            for (int i = 0; i < 4; ++i) {
                for (int y = 0; y < kTileY; ++y) columns[i * kTileY + y] = to_float(source[(x + i) * dx + y]);
            }
            turn_columns(columns, out + x);
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
    const int64_t each = view.dtype == DType::kFloat32 ? 4 : 2;
    const bool along_x = view.stride[4] == 1;
    if (!along_x && view.stride[3] != 1) return;
    const int64_t offset = tile.item * view.stride[0] + tile.channel * view.stride[1] + tile.z * view.stride[2] +
                           tile.y * view.stride[3] + tile.x * view.stride[4];
    const char* const start = static_cast<const char*>(view.data) + each * offset;
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
