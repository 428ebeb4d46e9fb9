// What norm_act does to a tile of voxels, rows of floats: load, measure, normalise and store.
#pragma once

#include <vector>

#include "view.h"

namespace scorefusion {

constexpr int64_t kTile = 4096;  // floats of a tile of whole voxels, unless one voxel has more
constexpr int kBlock = 64;  // voxels, and channels, of a block of statistics: 16 KiB of floats

constexpr int kRow = 16;  // floats of the widest vector

// A tile's rows are whole vectors.
SF_INLINE int64_t padded(int64_t channels) { return (channels + kRow - 1) / kRow * kRow; }

// y = (h - centre) * slope + offset, by channel; zeros up to a whole vector.
struct Fold {
    explicit Fold(int64_t channels)
        : channels(channels), centre(padded(channels)), slope(padded(channels)), offset(padded(channels)) {}
    int64_t channels;
    bool shifted = false;  // whether any centre is not zero
    std::vector<float> centre, slope, offset;
};

// For GroupNorm's gradient: unit = (h - centre) * rstd + moved, y = unit * slope + offset, and the group's means of the
// gradient by unit, and of that times unit.
struct GroupFold : Fold {
    explicit GroupFold(int64_t channels)
        : Fold(channels), rstd(centre), moved(centre), level(centre), along(centre) {}
    std::vector<float> rstd, moved, level, along;
};

// What a gradient comes through; briefly if it is a bfloat16 one, which cannot hold more.
enum class Act { kNone, kSilu, kBriefSilu };

// The loops of one instruction set.
struct TileLoops {
    // Widens `voxels` voxels, `step` elements apart from element `start`, into rows of `tile`, `row` floats apart.
    void (*load_voxels)(const View& view, int64_t start, int64_t step, int64_t voxels, int64_t channels, float* tile,
                        int64_t row);
    // Over the voxels of a tile whose rows are kBlock floats: a first mean of each channel, what it lacks, and the
    // sum of squares about the mean.
    void (*block_moments)(const float* tile, int64_t voxels, int64_t channels, float* first, float* rest,
                          float* squares);
    // Of at most kTile / kRow voxels, normalises each over its channels (fold.centre is subtracted before), folds,
    // activates, stores.
    void (*finish_layer)(float* tile, int64_t voxels, const Fold& fold, float eps, bool silu, DType dtype, void* out);
    // Folds, activates and stores.
    void (*finish_group)(const float* tile, int64_t voxels, const Fold& fold, bool silu, DType dtype, void* out);

    // The gradient by the result, in `gradient`, becomes that by what was normalised; see norm_act_backward_loops.h. Of
    // at most kTile / kRow voxels; `tile` is used up; adds to three rows of sums.
    void (*layer_gradient)(float* tile, float* gradient, int64_t voxels, const Fold& fold, float eps, Act act,
                           float* sums);
    // Adds to the first two of these rows only.
    void (*group_sums)(const float* tile, const float* gradient, int64_t voxels, const GroupFold& fold, Act act,
                       float* sums);
    void (*group_gradient)(const float* tile, float* gradient, int64_t voxels, const GroupFold& fold, Act act);
    // Narrows voxels of rows `row` floats apart into dense memory.
    void (*store_voxels)(const float* tile, int64_t row, int64_t voxels, int64_t channels, DType dtype, void* out);
};

// The best that this processor has.
const TileLoops& tile_loops();

}  // namespace scorefusion
