// A slab of 2D features into the 3D sums of a feature layer, and the gradient of the layer's weight.
//
//     total[b, o, n, u, v] += sum_{j<s} sum_i W[o, i, j] · feature[b, s n + j][i, u, v]
//
// A row of the product is a pixel of a coarse slice; its s I numbers are fetched from s slices, a few rows at a time.
#include "ensemble_features.h"

#include <type_traits>

#include "bind.h"
#include "parallel.h"
#include "processor.h"

#if defined(SF_HAS_TARGET_CLONES) && defined(__x86_64__) && !defined(__clang__)
#define SF_HAS_WIDE_LOOPS
#include <immintrin.h>
#endif

namespace scorefusion {
namespace {

namespace baseline {
constexpr int kLanes = 4, kRows = 6;
#include "ensemble_features_loops.h"
}  // namespace baseline

#if defined(SF_HAS_WIDE_LOOPS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kLanes = 8, kRows = 6;
#include "ensemble_features_loops.h"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kLanes = 16, kRows = 8;
#include "ensemble_features_loops.h"
}  // namespace avx512
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16")
#define SF_PAIRS
namespace avx512_bf16 {
constexpr int kLanes = 16, kRows = 8;
#include "ensemble_features_loops.h"
}  // namespace avx512_bf16
#undef SF_PAIRS
#pragma GCC pop_options
#endif

// The loops of one instruction set.
struct Loops {
    Scratch<char> (*pack)(const Slab&);
    void (*add)(const Slab&, const char* panels, int64_t begin, int64_t end);
    void (*backward)(const Slab&, int64_t begin, int64_t end);
    int group;
};

// The best that this processor has, for products of bfloat16 pairs or of float32.
Loops loops(bool pairs) {
#if defined(SF_HAS_WIDE_LOOPS)
    const InstructionSet here = instruction_set();
    if (here >= InstructionSet::kAvx512) {
        const Loops wide{avx512::pack_weight<Single>, avx512::add_range, avx512::backward_range, avx512::kGroup};
        if (!pairs || here != InstructionSet::kAvx512BF16) return wide;
        return {avx512_bf16::pack_weight<Pair>, avx512_bf16::add_pairs, wide.backward, wide.group};
    }
    if (here == InstructionSet::kAvx2) {
        return {avx2::pack_weight<Single>, avx2::add_range, avx2::backward_range, avx2::kGroup};
    }
#endif
    (void)pairs;
    return {baseline::pack_weight<Single>, baseline::add_range, baseline::backward_range, baseline::kGroup};
}

constexpr double kWorthAThread = 4e6;  // multiply-adds that a thread gets at least

void add_slab(const Slab& slab, int threads) {
    const Loops fit = loops(slab.features.dtype == DType::kBFloat16 && slab.weight.dtype == DType::kBFloat16);
    const Scratch<char> panels = fit.pack(slab);
    const int64_t chunks = slab.batch * slab.coarse * ((slab.pixels + kChunkRows - 1) / kChunkRows);
    const double work = static_cast<double>(kChunkRows) * slab.scale * slab.inputs * slab.outputs;
    const auto grain = static_cast<int64_t>(kWorthAThread / work) + 1;
    parallel_for(chunks, grain, threads,
                 [&](int64_t begin, int64_t end) { fit.add(slab, panels.get(), begin, end); });
}

void backward(const Slab& slab, int threads) {
    const Loops fit = loops(false);
    const int64_t groups = slab.scale * ((slab.inputs + fit.group - 1) / fit.group);
    const double work = static_cast<double>(slab.batch * slab.coarse * slab.pixels) * fit.group * slab.outputs;
    const auto grain = static_cast<int64_t>(kWorthAThread / work) + 1;
    parallel_for(groups, grain, threads, [&](int64_t begin, int64_t end) { fit.backward(slab, begin, end); });
}

}  // namespace

void bind_ensemble_features(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "ensemble_features",
        [](const View& total, const View& features, const View& weight, int axis, int64_t first, int threads) {
            const Slab slab(total, features, weight, axis, first);
            py::gil_scoped_release unlocked;
            add_slab(slab, threads);
        },
        py::arg("total"), py::arg("features"), py::arg("weight"), py::arg("axis"), py::arg("first"),
        py::arg("threads"), "Add features [B n, I, h, w] through weight [O, I, s] to `total` from coarse slice `first`.");
    m.def(
        "ensemble_features_backward",
        [](const View& out, const View& grad, const View& features, int axis, int64_t first, int threads) {
            const Slab slab(grad, features, out, axis, first);
            py::gil_scoped_release unlocked;
            backward(slab, threads);
        },
        py::arg("out"), py::arg("grad"), py::arg("features"), py::arg("axis"), py::arg("first"), py::arg("threads"),
        "Write the gradient with respect to the weight [O, I, s] into float32 `out`.");
}

}  // namespace scorefusion
