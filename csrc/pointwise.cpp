// y = W x + bias + residual for the channels of each voxel. A row's sums are taken in the order of its channels, one
// after another, whatever rows are computed with it: the bits depend neither on threads nor on how many rows there are.
#include <algorithm>
#include <cmath>

#include "common/bind.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/processor.h"

namespace scorefusion {
namespace {

// Rows [x, other] [rows, inputs] to [rows, outputs], each row's channels next to each other.
struct Pointwise {
    View x, other, out, residual;  // other and the residual may be absent
    int64_t depth = 0, width = 0;  // channels of the weights, in and out: whole vectors, the last filled up with zeros
    const float* bias = nullptr;
    const char* weights = nullptr;  // [panel][input][output of the panel]
};

struct Loops {
    void (*run)(const Pointwise& job, int64_t begin, int64_t end);  // rows [begin, end)
    int64_t lanes;                                                  // floats of a vector
};

#define SF_LOOPS "pointwise_loops.h"
#include "common/loops.h"

constexpr int64_t kFewProducts = 1 << 18;  // fewer are not worth another thread

}  // namespace

void bind_pointwise(pybind11::module_& m) {
    m.def(
        "pointwise",
        [](const View& out, const View& x, const View& other, const View& weights, const View& bias,
           const View& residual, bool pairs, int threads) {
            pybind11::gil_scoped_release unlocked;
            prefer_huge_pages(out);
            const Loops& fit = SF_BEST(kLoops)[pairs];
            const int64_t inputs = x.size[1] + (other ? other.size[1] : 0);
            const int64_t depth = (inputs + fit.lanes - 1) / fit.lanes * fit.lanes, width = bias.size[0];
            const Pointwise job{x,     other, out, residual, depth, width, static_cast<const float*>(bias.data),
                                static_cast<const char*>(weights.data)};
            const int64_t grain = std::max<int64_t>(1, kFewProducts / std::max<int64_t>(1, depth * width));
            parallel_for(x.size[0], grain, threads,
                         [&](int64_t begin, int64_t end) { fit.run(job, begin, end); });
        },
        "Multiply rows [x, other] [rows, inputs] by packed weights, into `out` [rows, outputs].");
}

}  // namespace scorefusion
