// The CPU loop of a solver step: a slab of whole blocks at a time, so that what it reads twice is in the cache.
//
// A slab is one block deep, and about a tile of whole blocks wide and high. Its first pass writes x0 before
// projecting and sums the blocks; its second reads x0 back, subtracts the means and writes x0 and x'.
#include "fuse_step.h"

#include <algorithm>
#include <cmath>

#include "common/bind.h"
#include "fuse_scores.h"
#include "noise_tile.h"

namespace scorefusion {
namespace {

struct Step {
    Fusion fusion;
    View x_next, x0, x_t, x0_prev;
    View measured;  // [B, C, D/rz, H/ry, W/rx], or none for zero means
    const NoiseKey* keys;
    StepRow row;
    float limit;
    std::array<int64_t, 3> factor;
    uint32_t number;

    bool projects() const { return factor[0] * factor[1] * factor[2] > 1; }
};

// Sums of a slab's columns of voxels, one row for each row of blocks; then what each voxel is to lose.
struct Columns {
    std::vector<float> value;
    int64_t y, x, width;

    float* at(const Step& step, const Tile& tile, int row) {
        return value.data() + (tile.y + row - y) / step.factor[1] * width + (tile.x - x);
    }
};

// Writes x0 of a tile before projecting, and adds it to the columns' sums.
SF_VECTOR_CLONES
void clean_tile(const Step& step, const Tile& tile, Columns& columns) {
    alignas(64) float m[kTileCells], copy[kTileCells];
    const Tile next = following(tile, step.x0, step.factor[0]);
    fuse_tile(step.fusion, tile, next, m);
    const Floats x_t = read_tile(step.x_t, tile, copy);
    prefetch_tile(step.x_t, next);
    prefetch_tile<true>(step.x0, next);
    prefetch_tile<true>(step.x_next, next);
    if (step.row.c != 0.0f) prefetch_tile(step.x0_prev, next);
    for (int y = 0; y < tile.rows; ++y) {
        const float* __restrict now = x_t.row(y);
        float* __restrict x0 = row_of(step.x0, tile, y);
        for (int x = 0; x < tile.columns; ++x) {
            x0[x] = clean_voxel(step.row, now[x], m[y * kTileX + x], step.limit);
        }
        if (!step.projects()) continue;
        float* __restrict sum = columns.at(step, tile, y);
        for (int x = 0; x < tile.columns; ++x) sum[x] += x0[x];
    }
}

// Turns the columns' sums into the difference between each block's mean and its measured one.
void find_excess(const Step& step, const Tile& slab, Columns& columns) {
    const int64_t rx = step.factor[2], ry = step.factor[1];
    const float share = 1.0f / static_cast<float>(step.factor[0] * ry * rx);
    Tile block{slab.item, slab.channel, slab.z / step.factor[0], slab.y / ry, slab.x / rx, 1, 1};
    for (int64_t y = 0; y < slab.rows / ry; ++y, ++block.y) {
        block.x = slab.x / rx;
        for (int64_t x = 0; x < slab.columns / rx; ++x, ++block.x) {
            float* const column = columns.value.data() + y * columns.width + x * rx;
            float sum = 0.0f;
            for (int64_t i = 0; i < rx; ++i) sum += column[i];
            sum *= share;
            if (step.measured) sum -= load_voxel(step.measured, block);
            for (int64_t i = 0; i < rx; ++i) column[i] = sum;
        }
    }
}

// Reads x0 back, projects it, and writes it and x'.
SF_VECTOR_CLONES
void finish_tile(const Step& step, const Tile& tile, Columns& columns) {
    alignas(64) float x_t_copy[kTileCells], previous_copy[kTileCells], noise[4 * kTileLanes];
    const Floats x_t = read_tile(step.x_t, tile, x_t_copy);
    const Floats previous = step.row.c != 0.0f ? read_tile(step.x0_prev, tile, previous_copy) : x_t;
    int width = kTileX, start = 0;
    if (step.row.s != 0.0f) start = noise_tile(step.keys[tile.item], step.number, tile, noise, width);
    for (int y = 0; y < tile.rows; ++y) {
        const float* __restrict now = x_t.row(y);
        const float* __restrict before = previous.row(y);
        const float* __restrict z = noise + y * width + start;
        float* __restrict x0 = row_of(step.x0, tile, y);
        float* __restrict next = row_of(step.x_next, tile, y);
        if (step.projects()) {
            const float* __restrict excess = columns.at(step, tile, y);
            for (int x = 0; x < tile.columns; ++x) x0[x] -= excess[x];
        }
        for (int x = 0; x < tile.columns; ++x) next[x] = next_voxel(step.row, now[x], x0[x], before[x], z[x]);
    }
}

// Calls body(tile) for every tile of a slab.
template <typename Body>
void for_slab(const Step& step, const Tile& slab, const Body& body) {
    for (int64_t z = slab.z; z < slab.z + step.factor[0]; ++z) {
        for (int64_t y = 0; y < slab.rows; y += kTileY) {
            for (int64_t x = 0; x < slab.columns; x += kTileX) {
                body(Tile{slab.item, slab.channel, z, slab.y + y, slab.x + x,
                          static_cast<int>(std::min<int64_t>(kTileY, slab.rows - y)),
                          static_cast<int>(std::min<int64_t>(kTileX, slab.columns - x))});
            }
        }
    }
}

void run(const Step& step, int threads) {
    const int64_t high = step.factor[1] * std::max<int64_t>(1, kTileY / step.factor[1]);
    const int64_t wide = step.factor[2] * std::max<int64_t>(1, kTileX / step.factor[2]);
    for_boxes(step.x0, step.factor[0], high, wide, threads, [&](const Tile& slab) {
        Columns columns{{}, slab.y, slab.x, wide};
        if (step.projects()) columns.value.assign(high / step.factor[1] * wide, 0.0f);
        for_slab(step, slab, [&](const Tile& tile) { clean_tile(step, tile, columns); });
        if (step.projects()) find_excess(step, slab, columns);
        for_slab(step, slab, [&](const Tile& tile) { finish_tile(step, tile, columns); });
    });
}

}  // namespace

void bind_fuse_step(pybind11::module_& m) {
    m.def(
        "fuse_step",
        [](const View& x_next, const View& x0, const std::vector<View>& scores, const View& maps,
           const std::vector<double>& base, double gain, const View& x_t, const View& x0_prev, uintptr_t rows,
           uintptr_t index, uintptr_t keys, std::optional<float> clamp,
           const std::array<int64_t, 3>& factor, const View& measured, int threads) {
            const int32_t number = *reinterpret_cast<const int32_t*>(index);
            const Step step{{scores, maps, base, gain},
                            x_next,
                            x0,
                            x_t,
                            x0_prev,
                            measured,
                            reinterpret_cast<const NoiseKey*>(keys),
                            reinterpret_cast<const StepRow*>(rows)[number],
                            clamp.value_or(INFINITY),
                            factor,
                            static_cast<uint32_t>(number) + 1};
            pybind11::gil_scoped_release unlocked;
            run(step, threads);
        },
        "Write float32 `x_next` and `x0` [B, C, D, H, W] of one solver step; rows, index and keys are addresses.");
}

}  // namespace scorefusion
