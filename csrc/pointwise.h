// A product over the channels of each voxel: a 1x1 or 1x1x1 convolution, a linear layer.
#pragma once

#include <cstdint>

#include "products.h"
#include "view.h"

namespace scorefusion {

// Rows [x, other] [rows, inputs] to [rows, outputs], each row's channels next to each other.
struct Pointwise {
    View x, other, out, residual;
    bool has_other = false, has_residual = false;
    int64_t depth = 0, width = 0;  // channels of the weights, in and out: whole vectors, the last filled up with zeros
    const float* bias = nullptr;
    const char* weights = nullptr;  // [panel][input][output of the panel]
};

// The loops of one instruction set.
struct PointwiseLoops {
    void (*run)(const Pointwise& job, int64_t begin, int64_t end);  // rows [begin, end)
    int64_t lanes;                                                  // floats of a vector
};

}  // namespace scorefusion
