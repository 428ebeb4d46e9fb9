// y = W x + bias + residual for the channels of each voxel. A row's sums are taken in the order of its channels, one
// after another, whatever rows are computed with it: the bits depend neither on threads nor on how many rows there are.
#include "pointwise.h"

#include <algorithm>
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
#include "pointwise_loops.h"
}  // namespace baseline

#if defined(SF_HAS_WIDE_LOOPS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kLanes = 8, kMost = 2;
#include "lanes.h"
#include "products_loops.h"
#include "pointwise_loops.h"
}  // namespace avx2
#pragma GCC pop_options
#define SF_WIDE
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kLanes = 16, kMost = 4;
#include "lanes.h"
#include "products_loops.h"
#include "pointwise_loops.h"
}  // namespace avx512
#pragma GCC pop_options
#define SF_NARROW
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16")
namespace avx512_bf16 {
constexpr int kLanes = 16, kMost = 4;
#include "lanes.h"
#include "products_loops.h"
#include "pointwise_loops.h"
}  // namespace avx512_bf16
#pragma GCC pop_options
#undef SF_NARROW
#undef SF_WIDE
#endif

// The best that this processor has, for products of bfloat16 pairs or of float32.
PointwiseLoops loops(bool pairs) {
#if defined(SF_HAS_WIDE_LOOPS)
    switch (instruction_set()) {
        case InstructionSet::kAvx512BF16:
            if (pairs) return {avx512_bf16::run<Pair>, avx512_bf16::kLanes};
            return {avx512_bf16::run<Single>, avx512_bf16::kLanes};
        case InstructionSet::kAvx512: return {avx512::run<Single>, avx512::kLanes};
        case InstructionSet::kAvx2: return {avx2::run<Single>, avx2::kLanes};
        default: break;
    }
#endif
    (void)pairs;
    return {baseline::run<Single>, baseline::kLanes};
}

constexpr int64_t kFewProducts = 1 << 18;  // fewer are not worth another thread

}  // namespace

void bind_pointwise(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "pointwise",
        [](const View& out, const View& x, const std::optional<View>& other, const View& weights, const View& bias,
           const std::optional<View>& residual, bool pairs, int threads) {
            py::gil_scoped_release unlocked;
            prefer_huge_pages(out);
            const PointwiseLoops fit = loops(pairs);
            Pointwise job;
            job.x = x;
            job.out = out;
            job.has_other = other.has_value();
            if (other) job.other = *other;
            job.has_residual = residual.has_value();
            if (residual) job.residual = *residual;
            const int64_t inputs = x.size[1] + (other ? other->size[1] : 0);
            job.depth = (inputs + fit.lanes - 1) / fit.lanes * fit.lanes;
            job.width = bias.size[0];
            job.bias = static_cast<const float*>(bias.data);
            job.weights = static_cast<const char*>(weights.data);
            const int64_t grain = std::max<int64_t>(1, kFewProducts / std::max<int64_t>(1, job.depth * job.width));
            parallel_for(x.size[0], grain, threads,
                         [&](int64_t begin, int64_t end) { fit.run(job, begin, end); });
        },
        py::arg("out"), py::arg("x"), py::arg("other"), py::arg("weights"), py::arg("bias"), py::arg("residual"),
        py::arg("pairs"), py::arg("threads"),
        "Multiply rows [x, other] [rows, inputs] by packed weights, into `out` [rows, outputs].");
}

}  // namespace scorefusion
