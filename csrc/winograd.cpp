// Winograd's minimal filtering (Lavin and Gray 2016): F(2, 3) or F(4, 3) along each axis.
//
//     y = A' [sum_c (G w_c) (B' x_c)] + bias + residual
//
// with each transform applied along every axis. At each of the transformed positions the sum over channels is a matrix
// product, tiles by channels, which takes 4 numbers instead of 2 x 3 along an axis, or 6 instead of 4 x 3.
#include <algorithm>
#include <cmath>

#include "common/bind.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/processor.h"

namespace scorefusion {
namespace {

// [N, C, D, H, W] to [N, O, D, H, W], channels last; D is 1 for slices. A tile is `deep` x `high` x `wide` outputs
// (deep 0: the kernel has no depth); an edge cuts off what is beyond it.
struct Winograd {
    View x, out, residual;  // the residual may be absent
    bool replicate;
    int64_t inputs, outputs;  // of the weights: in whole vectors, the last filled up with zeros
    int64_t first;            // which depth row of the whole result is the first of out
    int deep, high, wide;
    const float* bias;
    const char* weights;                      // transformed: [panel][position][input][output of the panel]
    int64_t tiles[3] = {1, 1, 1}, block = 1;  // along z, y and x; of a block

    int64_t positions() const { return (deep == 0 ? 1 : deep + 2) * (high + 2) * (wide + 2); }
    int64_t count() const { return out.size[0] * tiles[0] * tiles[1] * tiles[2]; }
};

constexpr int64_t kTiles = 24;  // a block's scratch has room for a multiple: whole rows of every kernel

struct Loops {
    void (*run)(const Winograd& job, int64_t begin, int64_t end);  // tiles [begin, end)
    int64_t lanes, most;                                           // floats of a vector, vectors of a panel
};

#define SF_LOOPS "winograd_loops.h"
#include "common/loops.h"

// Blocks of as many tiles as leave the scratch in the second-level cache, twice that where the weights, each read once
// a block, are not there either; fewer where there would not be one for each thread.
void convolve(Winograd& job, const Loops& fit, int threads) {
    const int64_t count = job.count(), most = job.inputs < 256 ? kTiles : 2 * kTiles;
    const int64_t blocks = std::max((count + most - 1) / most, std::min<int64_t>(threads, (count + 5) / 6));
    job.block = (count + blocks - 1) / blocks;
    parallel_for(blocks, 1, threads, [&](int64_t begin, int64_t end) {
        fit.run(job, begin * job.block, std::min(end * job.block, count));
    });
}

}  // namespace

void bind_winograd(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "winograd_layout",
        [](bool pairs) {
            const Loops& fit = SF_BEST(kLoops)[pairs];
            return py::make_tuple(fit.lanes, fit.most);
        },
        "From whether bfloat16 pairs are multiplied to (floats of a vector, vectors of a panel) of the packed weights.");
    m.def("winograd_pairs", [] { return SF_BEST(kPairs); }, "Whether products of bfloat16 pairs are here.");
    m.def(
        "winograd",
        [](const View& out, const View& x, const View& weights, const View& bias, const View& residual, bool pairs,
           int deep, int high, int wide, int64_t first, bool replicate, int threads) {
            py::gil_scoped_release unlocked;
            prefer_huge_pages(out);
            const Loops& fit = SF_BEST(kLoops)[pairs];
            const int64_t inputs = (x.size[1] + fit.lanes - 1) / fit.lanes * fit.lanes;
            Winograd job{as_volume(x), as_volume(out), as_volume(residual), replicate, inputs, bias.size[0],
                         first, deep, high, wide, static_cast<const float*>(bias.data),
                         static_cast<const char*>(weights.data)};
            const int tile[3] = {std::max(deep, 1), high, wide};
            for (int axis = 0; axis < 3; ++axis) {
                job.tiles[axis] = (job.out.size[axis + 2] + tile[axis] - 1) / tile[axis];
            }
            convolve(job, fit, threads);
        },
        "Convolve channels-last x [N, C, ...] into channels-last `out`.");
}

}  // namespace scorefusion
