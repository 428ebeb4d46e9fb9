// A slab of 2D features into the 3D sums of a feature layer, and the gradient of the layer's weight.
//
//     total[b, o, n, u, v] += sum_{j<s} sum_i W[o, i, j] · feature[b, s n + j][i, u, v]
//
// A row of the product is a pixel of a coarse slice; its s I numbers are fetched from s slices, a few rows at a time.
#include <algorithm>
#include <type_traits>

#include "common/bind.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/processor.h"

namespace scorefusion {
namespace {

// total [B, O, D/s, H/s, W/s] with its axes named by the plane, features [B n, I, h, w], weight [O, I, s].
struct Slab {
    View total, features, weight;
    int64_t batch, outputs, inputs, scale, coarse, width, pixels, first;  // coarse = n / s, pixels = h w
    int64_t slice_stride, y_stride, x_stride;                            // of total, in elements

    // axis is the plane's own, 2 to 4; total may be a gradient, weight may be the weight's gradient.
    Slab(const View& total, const View& features, const View& weight, int axis, int64_t first)
        : total(total), features(features), weight(weight), first(first) {
        batch = total.size[0], outputs = weight.size[0], inputs = weight.size[1], scale = weight.size[2];
        coarse = features.size[0] / (batch * scale);
        width = features.size[3], pixels = features.size[2] * width;
        slice_stride = total.stride[axis];
        y_stride = total.stride[axis == 2 ? 3 : 2];
        x_stride = total.stride[axis == 4 ? 3 : 4];
    }

    int64_t total_at(int64_t item, int64_t slice, int64_t pixel) const {
        return item * total.stride[0] + (first + slice) * slice_stride + pixel / width * y_stride +
               pixel % width * x_stride;
    }
    // Where slice jj of a coarse slice's s slices begins.
    int64_t slice_at(int64_t item, int64_t slice, int64_t jj) const {
        return ((item * coarse + slice) * scale + jj) * features.stride[0];
    }
};

constexpr int64_t kDepth = 256;     // Numbers of the summed axis at a time: rows and a panel of weights stay near
constexpr int64_t kChunkRows = 96;  // pixels whose sums one thread holds: a multiple of 6 and 8

struct Loops {
    Scratch<char> (*pack)(const Slab&);
    void (*add)(const Slab&, const char* panels, int64_t begin, int64_t end);
    void (*backward)(const Slab&, int64_t begin, int64_t end);
    int group;
};

#define SF_LOOPS "ensemble_features_loops.h"
#include "common/loops.h"

constexpr double kWorthAThread = 4e6;  // multiply-adds that a thread gets at least

void add_slab(const Slab& slab, int threads) {
    const bool pairs = slab.features.dtype == DType::kBFloat16 && slab.weight.dtype == DType::kBFloat16;
    const Loops& fit = SF_BEST(kLoops)[pairs];
    const Scratch<char> panels = fit.pack(slab);
    const int64_t chunks = slab.batch * slab.coarse * ((slab.pixels + kChunkRows - 1) / kChunkRows);
    const double work = static_cast<double>(kChunkRows) * slab.scale * slab.inputs * slab.outputs;
    const auto grain = static_cast<int64_t>(kWorthAThread / work) + 1;
    parallel_for(chunks, grain, threads,
                 [&](int64_t begin, int64_t end) { fit.add(slab, panels.get(), begin, end); });
}

void backward(const Slab& slab, int threads) {
    const Loops& fit = SF_BEST(kLoops)[false];
    const int64_t groups = slab.scale * ((slab.inputs + fit.group - 1) / fit.group);
    const double work = static_cast<double>(slab.batch * slab.coarse * slab.pixels) * fit.group * slab.outputs;
    const auto grain = static_cast<int64_t>(kWorthAThread / work) + 1;
    parallel_for(groups, grain, threads, [&](int64_t begin, int64_t end) { fit.backward(slab, begin, end); });
}

}  // namespace

void bind_ensemble_features(pybind11::module_& m) {
    m.def(
        "ensemble_features",
        [](const View& total, const View& features, const View& weight, int axis, int64_t first, int threads) {
            const Slab slab(total, features, weight, axis, first);
            pybind11::gil_scoped_release unlocked;
            add_slab(slab, threads);
        },
        "Add features [B n, I, h, w] through weight [O, I, s] to `total` from coarse slice `first`.");
    m.def(
        "ensemble_features_backward",
        [](const View& out, const View& grad, const View& features, int axis, int64_t first, int threads) {
            const Slab slab(grad, features, out, axis, first);
            pybind11::gil_scoped_release unlocked;
            backward(slab, threads);
        },
        "Write the gradient with respect to the weight [O, I, s] into float32 `out`.");
}

}  // namespace scorefusion
