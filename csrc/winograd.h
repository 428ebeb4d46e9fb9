// A 3x3 or 3x3x3 convolution as Winograd's minimal filtering computes it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "products.h"
#include "view.h"

namespace scorefusion {

// [N, C, D, H, W] to [N, O, D, H, W], channels last; D is 1 for slices. A tile is `deep` x `high` x `wide` outputs
// (deep 0: the kernel has no depth); an edge cuts off what is beyond it.
struct Winograd {
    View x, out, residual;
    bool has_residual = false, replicate = false;
    int64_t inputs = 0, outputs = 0;  // of the weights: in whole vectors, the last filled up with zeros
    int64_t first = 0;                // which depth row of the whole result is the first of out
    int deep = 0, high = 2, wide = 2;
    int64_t tiles[3] = {1, 1, 1}, block = 1;  // along z, y and x; of a block
    const float* bias = nullptr;
    const char* weights = nullptr;  // transformed: [panel][position][input][output of the panel]

    int64_t positions() const { return (deep == 0 ? 1 : deep + 2) * (high + 2) * (wide + 2); }
    int64_t count() const { return out.size[0] * tiles[0] * tiles[1] * tiles[2]; }
};

constexpr int64_t kTiles = 24;  // a block's scratch has room for a multiple: whole rows of every kernel

// The loops of one instruction set.
struct WinogradLoops {
    void (*run)(const Winograd& job, int64_t begin, int64_t end);  // tiles [begin, end)
    int64_t lanes, most;                                           // floats of a vector, vectors of a panel
};

}  // namespace scorefusion
