// The CPU loop of a solver step: a slab of whole blocks at a time, so that what it reads twice is in the cache.
//
// A slab is one block deep, and about a tile of whole blocks wide and high. Its first pass writes x0 before
// projecting and sums the blocks; its second reads x0 back, subtracts the means and writes x0 and x'.
#include "fuse_step.h"

#include <algorithm>
#include <cmath>

#include "common/bind.h"
#include "fuse_scores.h"
#include "noise.h"
#include "common/parallel.h"

namespace scorefusion {
namespace {

constexpr int kTileGroups = kTileX / 4 + 1;  // groups of four that a row of a tile may touch
constexpr int kTileLanes = kTileY * kTileGroups;
static_assert(kTileLanes % 16 == 0, "lanes are computed in whole vectors");

struct Step {
    Fusion fusion;
    View x_next, x0, x_t, x0_prev;
    View measured;  // [B, C, D/rz, H/ry, W/rx], or none for zero means
    const StepKey* keys;
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

// Standard normals of a tile, rows of 4 * groups; the tile's first voxel is at the returned place of a row.
SF_INLINE int noise_tile(const Step& step, const Tile& tile, float* __restrict out, int& width) {
    alignas(64) uint32_t counters[kTileLanes];
    alignas(64) float lanes[4][kTileLanes];
    const StepKey& key = step.keys[tile.item];
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
        normal4(counters[i], 0, z, channel, step.number, sample, seed, lanes[0][i], lanes[1][i], lanes[2][i],
                lanes[3][i]);
    }
    for (int i = 0; i < padded; ++i) {
        for (int lane = 0; lane < 4; ++lane) out[4 * i + lane] = lanes[lane][i];
    }
    width = 4 * groups;
    return static_cast<int>(first % 4);
}

// Reads x0 back, projects it, and writes it and x'.
SF_VECTOR_CLONES
void finish_tile(const Step& step, const Tile& tile, Columns& columns) {
    alignas(64) float x_t_copy[kTileCells], previous_copy[kTileCells], noise[4 * kTileLanes];
    const Floats x_t = read_tile(step.x_t, tile, x_t_copy);
    const Floats previous = step.row.c != 0.0f ? read_tile(step.x0_prev, tile, previous_copy) : x_t;
    int width = kTileX, start = 0;
    if (step.row.s != 0.0f) start = noise_tile(step, tile, noise, width);
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
    const auto& size = step.x0.size;
    const int64_t channels = size[1], height = size[3], width = size[4];
    const int64_t deep = size[2] / step.factor[0];
    const int64_t high = step.factor[1] * std::max<int64_t>(1, kTileY / step.factor[1]);
    const int64_t wide = step.factor[2] * std::max<int64_t>(1, kTileX / step.factor[2]);
    const int64_t strips = (height + high - 1) / high;
    const int64_t count = size[0] * channels * deep * strips;
    const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(step.factor[0] * high * width, 1));
    parallel_for(count, grain, threads, [&](int64_t begin, int64_t end) {
        Columns columns;
        columns.width = wide;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t layer = i / strips;
            const int64_t y = i % strips * high;
            for (int64_t x = 0; x < width; x += wide) {
                const Tile slab{layer / deep / channels,
                                layer / deep % channels,
                                layer % deep * step.factor[0],
                                y,
                                x,
                                static_cast<int>(std::min(high, height - y)),
                                static_cast<int>(std::min(wide, width - x))};
                columns.y = y;
                columns.x = x;
                if (step.projects()) columns.value.assign(high / step.factor[1] * wide, 0.0f);
                for_slab(step, slab, [&](const Tile& tile) { clean_tile(step, tile, columns); });
                if (step.projects()) find_excess(step, slab, columns);
                for_slab(step, slab, [&](const Tile& tile) { finish_tile(step, tile, columns); });
            }
        }
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
                            reinterpret_cast<const StepKey*>(keys),
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
