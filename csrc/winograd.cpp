// Winograd's minimal filtering (Lavin and Gray 2016): F(2, 3) or F(4, 3) along each axis.
//
//     y = A' [sum_c (G w_c) (B' x_c)] + bias + residual
//
// with each transform applied along every axis. At each of the transformed positions the sum over channels is a matrix
// product, tiles by channels, which takes 4 numbers instead of 2 x 3 along an axis, or 6 instead of 4 x 3.
#include "winograd.h"

#include <cmath>

#include "bind.h"
#include "pages.h"
#include "parallel.h"
#include "processor.h"
#include "scratch.h"

#if defined(SF_HAS_TARGET_CLONES) && defined(__x86_64__) && !defined(__clang__)
#define SF_HAS_WIDE_LOOPS
#include <immintrin.h>
#endif

namespace scorefusion {
namespace {

namespace baseline {
constexpr int kLanes = 8, kMost = 2;
#include "lanes.h"
#include "products_loops.h"
#include "winograd_loops.h"
}  // namespace baseline

#if defined(SF_HAS_WIDE_LOOPS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kLanes = 8, kMost = 2;
#include "lanes.h"
#include "products_loops.h"
#include "winograd_loops.h"
}  // namespace avx2
#pragma GCC pop_options
#define SF_WIDE
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kLanes = 16, kMost = 4;
#include "lanes.h"
#include "products_loops.h"
#include "winograd_loops.h"
}  // namespace avx512
#pragma GCC pop_options
#define SF_NARROW
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16")
namespace avx512_bf16 {
constexpr int kLanes = 16, kMost = 4;
#include "lanes.h"
#include "products_loops.h"
#include "winograd_loops.h"
}  // namespace avx512_bf16
#pragma GCC pop_options
#undef SF_NARROW
#undef SF_WIDE
#endif

// The best that this processor has, for products of bfloat16 pairs or of float32.
WinogradLoops loops(bool pairs) {
#if defined(SF_HAS_WIDE_LOOPS)
    switch (instruction_set()) {
        case InstructionSet::kAvx512BF16:
            if (pairs) return {avx512_bf16::run<Pair>, avx512_bf16::kLanes, avx512_bf16::kMost};
            return {avx512_bf16::run<Single>, avx512_bf16::kLanes, avx512_bf16::kMost};
        case InstructionSet::kAvx512: return {avx512::run<Single>, avx512::kLanes, avx512::kMost};
        case InstructionSet::kAvx2: return {avx2::run<Single>, avx2::kLanes, avx2::kMost};
        default: break;
    }
#endif
    (void)pairs;
    return {baseline::run<Single>, baseline::kLanes, baseline::kMost};
}

// Blocks of as many tiles as leave the scratch in the second-level cache, twice that where the weights, each read once
// a block, are not there either; fewer where there would not be one for each thread.
void convolve(Winograd& job, const WinogradLoops& fit, int threads) {
    const int64_t count = job.count(), most = job.inputs < 256 ? kTiles : 2 * kTiles;
    const int64_t blocks = std::max((count + most - 1) / most, std::min<int64_t>(threads, (count + 5) / 6));
    job.block = (count + blocks - 1) / blocks;
    parallel_for(blocks, 1, threads, [&](int64_t begin, int64_t end) {
        fit.run(job, begin * job.block, std::min(end * job.block, count));
    });
}

// [N, C, H, W] as [N, C, 1, H, W].
View as_volume(View view) {
    if (view.dims == 5) return view;
    for (int axis = 4; axis > 2; --axis) {
        view.size[axis] = view.size[axis - 1];
        view.stride[axis] = view.stride[axis - 1];
    }
    view.size[2] = 1;
    view.stride[2] = 0;
    view.dims = 5;
    return view;
}

}  // namespace

void bind_winograd(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "winograd_layout",
        [](bool pairs) {
            const WinogradLoops fit = loops(pairs);
            return py::make_tuple(fit.lanes, fit.most);
        },
        py::arg("pairs"), "(floats of a vector, vectors of a panel) of the packed weights.");
    m.def(
        "winograd_pairs",
        [] {
#if defined(SF_HAS_WIDE_LOOPS)
            return instruction_set() == InstructionSet::kAvx512BF16;
#else
            return false;
#endif
        },
        "Whether products of bfloat16 pairs are here.");
    m.def(
        "winograd",
        [](const View& out, const View& x, const View& weights, const View& bias, const std::optional<View>& residual,
           bool pairs, int deep, int high, int wide, int64_t first, bool replicate, int threads) {
            py::gil_scoped_release unlocked;
            prefer_huge_pages(out);
            Winograd job;
            job.x = as_volume(x);
            job.out = as_volume(out);
            job.has_residual = residual.has_value();
            if (residual) job.residual = as_volume(*residual);
            job.deep = deep;
            job.high = high;
            job.wide = wide;
            job.first = first;
            job.replicate = replicate;
            const int64_t lanes = loops(pairs).lanes;
            job.inputs = (x.size[1] + lanes - 1) / lanes * lanes;
            job.outputs = bias.size[0];
            job.bias = static_cast<const float*>(bias.data);
            job.weights = static_cast<const char*>(weights.data);
            const int tile[3] = {std::max(deep, 1), high, wide};
            for (int axis = 0; axis < 3; ++axis) {
                job.tiles[axis] = (job.out.size[axis + 2] + tile[axis] - 1) / tile[axis];
            }
            convolve(job, loops(pairs), threads);
        },
        py::arg("out"), py::arg("x"), py::arg("weights"), py::arg("bias"), py::arg("residual"), py::arg("pairs"),
        py::arg("deep"), py::arg("high"), py::arg("wide"), py::arg("first"), py::arg("replicate"), py::arg("threads"),
        "Convolve channels-last x [N, C, ...] into channels-last `out`.");
}

}  // namespace scorefusion
