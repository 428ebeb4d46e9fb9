// The CPU loop of the fused score and of its gradient with respect to the maps.
#include "fuse_scores.h"

#include <algorithm>

#include "common/bind.h"
#include "common/parallel.h"

namespace scorefusion {
namespace {

SF_VECTOR_CLONES
void fuse_one(const Fusion& fusion, const View& out, const Tile& tile) {
    alignas(64) float total[kTileCells];
    const Tile next = following(tile, out, 1);
    prefetch_tile<true>(out, next);
    fuse_tile(fusion, tile, next, total);
    for (int y = 0; y < tile.rows; ++y) {
        float* __restrict row = row_of(out, tile, y);
        for (int x = 0; x < tile.columns; ++x) row[x] = total[y * kTileX + x];
    }
}

SF_VECTOR_CLONES
void backward_one(const View& out, const View& grad, const std::vector<View>& scores, double gain,
                  const Tile& tile) {
    alignas(64) float slope_copy[kTileCells], last_copy[kTileCells], other_copy[kTileCells];
    const int branches = static_cast<int>(scores.size());
    const Floats slope = read_tile(grad, tile, slope_copy);
    const Floats last = read_tile(scores[branches - 1], tile, last_copy);
    Tile map = tile;
    for (int k = 0; k + 1 < branches; ++k) {
        const Floats other = read_tile(scores[k], tile, other_copy);
        map.channel = k;
        for (int y = 0; y < tile.rows; ++y) {
            const float *g = slope.row(y), *s = other.row(y), *end = last.row(y);
            float* __restrict row = row_of(out, map, y);
            for (int x = 0; x < tile.columns; ++x) row[x] = g[x] * (s[x] - end[x]);
        }
    }
    map.channel = branches - 1;
    const float scale = static_cast<float>(gain);
    for (int y = 0; y < tile.rows; ++y) {
        const float* __restrict g = slope.row(y);
        float* __restrict row = row_of(out, map, y);
        for (int x = 0; x < tile.columns; ++x) row[x] = scale * g[x];
    }
}

// Calls body(tile) for every tile of a [B, C, D, H, W] view, strips of rows shared among threads.
template <typename Body>
void for_tiles(const View& box, int threads, const Body& body) {
    const int64_t channels = box.size[1], depth = box.size[2], height = box.size[3], width = box.size[4];
    const int64_t strips = (height + kTileY - 1) / kTileY;
    const int64_t count = box.size[0] * channels * depth * strips;
    const int64_t grain = std::max<int64_t>(1, 16384 / (kTileY * std::max<int64_t>(width, 1)));
    parallel_for(count, grain, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t plane = i / strips, y = i % strips * kTileY;
            for (int64_t x = 0; x < width; x += kTileX) {
                body(Tile{plane / depth / channels, plane / depth % channels, plane % depth, y, x,
                          static_cast<int>(std::min<int64_t>(kTileY, height - y)),
                          static_cast<int>(std::min<int64_t>(kTileX, width - x))});
            }
        }
    });
}

}  // namespace

void bind_fuse_scores(pybind11::module_& m) {
    m.def(
        "fuse_scores",
        [](const View& out, const std::vector<View>& scores, const View& maps,
           const std::vector<double>& base, double gain, int threads) {
            const Fusion fusion{scores, maps, base, gain};
            pybind11::gil_scoped_release unlocked;
            for_tiles(out, threads, [&](const Tile& tile) { fuse_one(fusion, out, tile); });
        },
        "Write the fused score of K views [B, C, D, H, W] into float32 `out`.");
    m.def(
        "fuse_scores_backward",
        [](const View& out, const View& grad, const std::vector<View>& scores, double gain, int threads) {
            pybind11::gil_scoped_release unlocked;
            for_tiles(grad, threads, [&](const Tile& tile) { backward_one(out, grad, scores, gain, tile); });
        },
        "Write the gradient with respect to the maps [B, K, D, H, W] into float32 `out`.");
}

}  // namespace scorefusion
