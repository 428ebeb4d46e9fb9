// What one step of a matrix product multiplies, and the panels of its weights.
#pragma once

#include <cstdint>

#include "view.h"

namespace scorefusion {

// A float32, or two bfloat16 whose products are added.
struct Single {
    using Part = float;
    float value;
};
struct Pair {
    using Part = BFloat16;
    uint32_t bits;
};

// Panels of outputs, of at most `most` vectors each and as equal as can be.
struct Panels {
    int64_t vectors, count;
    Panels(int64_t vectors, int64_t most) : vectors(vectors), count((vectors + most - 1) / most) {}
    int64_t begin(int64_t panel) const { return vectors * panel / count; }
};

}  // namespace scorefusion

#if defined(__GNUC__)
#define SF_UNROLL _Pragma("GCC unroll 64")
#else
#define SF_UNROLL
#endif
