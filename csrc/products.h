// What one step of a matrix product multiplies.
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

}  // namespace scorefusion
