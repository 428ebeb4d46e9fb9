// The CPU loop of the fused score and of its gradient with respect to the maps.
#include "fuse_scores.h"


#include "common/bind.h"

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

}  // namespace

void bind_fuse_scores(pybind11::module_& m) {
    m.def(
        "fuse_scores",
        [](const View& out, const std::vector<View>& scores, const View& maps,
           const std::vector<double>& base, double gain, int threads) {
            const Fusion fusion{scores, maps, base, gain};
            pybind11::gil_scoped_release unlocked;
            for_boxes(out, 1, kTileY, kTileX, threads, [&](const Tile& tile) { fuse_one(fusion, out, tile); });
        },
        "Write the fused score of K views [B, C, D, H, W] into float32 `out`.");
    m.def(
        "fuse_scores_backward",
        [](const View& out, const View& grad, const std::vector<View>& scores, double gain, int threads) {
            pybind11::gil_scoped_release unlocked;
            for_boxes(grad, 1, kTileY, kTileX, threads, [&](const Tile& tile) { backward_one(out, grad, scores, gain, tile); });
        },
        "Write the gradient with respect to the maps [B, K, D, H, W] into float32 `out`.");
}

}  // namespace scorefusion
