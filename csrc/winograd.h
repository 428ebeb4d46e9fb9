// A 3x3 or 3x3x3 convolution as Winograd's minimal filtering computes it, and the loops over it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "view.h"

namespace scorefusion {

// A convolution [N, C, D, H, W] to [N, O, D, H, W], channels last; D is 1 for slices. Sizes and strides are of
// elements; a tile is `deep` x `wide` x `wide` outputs, of which an edge cuts off what is beyond it.
struct Winograd {
    View x, out, residual;
    bool has_residual = false, replicate = false, pairs = false;
    int64_t inputs = 0, outputs = 0;
    int deep = 0, wide = 2;  // outputs of a tile along an axis; deep is 0 where the kernel has no depth
    int64_t tiles[3] = {1, 1, 1};
    const float* bias = nullptr;
    const char* weights = nullptr;  // [panel][position][input][output of the panel]

    int64_t positions() const { return (deep == 0 ? 1 : deep + 2) * (wide + 2) * (wide + 2); }
    int64_t count() const { return x.size[0] * tiles[0] * tiles[1] * tiles[2]; }
};

// What one step of a product multiplies: a float32, or two bfloat16 whose products are added.
struct Single {
    using Part = float;
    float value;
};
struct Pair {
    using Part = BFloat16;
    uint32_t bits;
};

constexpr int64_t kBlockTiles = 24;  // tiles of a block: a multiple of every kernel's rows

// Panels of outputs, of at most `most` vectors each and as equal as can be.
struct Panels {
    int64_t vectors, count;
    Panels(int64_t vectors, int64_t most) : vectors(vectors), count((vectors + most - 1) / most) {}
    int64_t begin(int64_t panel) const { return vectors * panel / count; }
};

// The loops of one instruction set.
struct WinogradLoops {
    // Tiles [begin, end) from x to out.
    void (*run)(const Winograd&, int64_t begin, int64_t end);
    int64_t lanes, most;  // floats of a vector, vectors of a panel
};

// The best that this processor has, for products of bfloat16 pairs or of float32.
WinogradLoops winograd_loops(const Winograd& job);

}  // namespace scorefusion
