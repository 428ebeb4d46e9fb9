// Normalisation, FiLM and SiLU on the CPU: voxels go through a float tile that stays in the first-level cache.
//
// Everything per channel is folded, in double, into y = (h - centre) * slope + offset; for LayerNorm (h - mean)
// * rstd of the voxel comes first. Parts and their order depend on sizes alone, so any number of threads
// gives the same bits.
#include <algorithm>
#include <cstring>
#include <optional>

#include "bind.h"
#include "norm_act.h"
#include "norm_act_job.h"
#include "pages.h"
#include "parallel.h"

namespace scorefusion {
namespace {

struct Job : NormJob {
    View out;                     // [N, C, D + 2p, H + 2p, W + 2p], channels-last and dense
    std::array<int64_t, 3> pad{};  // z, y, x
    bool replicate = false;
};

// What each channel of sample n is moved and scaled by.
Fold fold_groups(const Job& job, int64_t n, int threads) {
    const int64_t channels = job.channels(), each = channels / job.groups;
    const std::vector<Moments> moments = group_moments(job, n, channel_moments(job, n, threads));
    Fold fold(channels);
    for (int64_t c = 0; c < channels; ++c) {
        const Moments& group = moments[c / each];
        const double centre = group.mean - job.add[n * channels + c], slope = job.slope[n * channels + c] * group.rstd;
        fold.centre[c] = static_cast<float>(centre);
        fold.slope[c] = static_cast<float>(slope);
        // What rounding cut off the centre: as large as 5e-4 at a mean of 1e4.
        fold.offset[c] = static_cast<float>(job.offset[n * channels + c] - (centre - fold.centre[c]) * slope);
    }
    return fold;
}

// ---- writing

int64_t voxels_of_tile(int64_t channels) { return std::max<int64_t>(1, kTile / padded(channels)); }

// Writes row (n, z, y) of the padded output.
void write_row(const Job& job, const Fold& fold, int64_t n, int64_t z, int64_t y, float* tile) {
    const int64_t channels = job.channels(), width = job.inner(2);
    const size_t voxel = channels * bytes_of(job.out);
    char* row = static_cast<char*>(job.out.data) +
                ((n * job.out.size[2] + z) * job.out.size[3] + y) * job.out.size[4] * voxel;
    const int64_t from_z = std::clamp<int64_t>(z - job.pad[0], 0, job.inner(0) - 1);
    const int64_t from_y = std::clamp<int64_t>(y - job.pad[1], 0, job.inner(1) - 1);
    if (!job.replicate && (from_z != z - job.pad[0] || from_y != y - job.pad[1])) {
        std::memset(row, 0, voxel * job.out.size[4]);
        return;
    }
    const TileLoops& loops = tile_loops();
    char* const first = row + job.pad[2] * voxel;
    const int64_t step = voxels_of_tile(channels);
    for (int64_t x = 0; x < width; x += step) {
        const int64_t size = std::min(step, width - x);
        int64_t c = 0;
        for (const View& part : job.parts) {
            const int64_t start = n * part.stride[0] + from_z * part.stride[2] + from_y * part.stride[3] +
                                  x * part.stride[4];
            loops.load_voxels(part, start, part.stride[4], size, part.size[1], tile + c, padded(channels));
            c += part.size[1];
        }
        if (job.groups == 0) {
            const auto eps = static_cast<float>(job.eps);
            loops.finish_layer(tile, size, fold, eps, job.silu, job.out.dtype, first + x * voxel);
        } else {
            loops.finish_group(tile, size, fold, job.silu, job.out.dtype, first + x * voxel);
        }
    }
    char* const last = first + (width - 1) * voxel;
    for (int64_t i = 1; i <= job.pad[2]; ++i) {
        if (job.replicate) {
            std::memcpy(first - i * voxel, first, voxel);
            std::memcpy(last + i * voxel, last, voxel);
        } else {
            std::memset(first - i * voxel, 0, voxel);
            std::memset(last + i * voxel, 0, voxel);
        }
    }
}

void write_rows(const Job& job, const Fold& fold, int64_t n, int64_t begin, int64_t end) {
    std::vector<float> tile(voxels_of_tile(job.channels()) * padded(job.channels()));
    const int64_t height = job.out.size[3];
    for (int64_t row = begin; row < end; ++row) {
        write_row(job, fold, n, row / height, row % height, tile.data());
    }
}

// One sample, its statistics and its rows shared among `threads`. A sample at a time, so that the second
// reading finds it in a cache that it fits.
void run_sample(const Job& job, int64_t n, int threads) {
    const int64_t rows = job.out.size[2] * job.out.size[3];
    const int64_t row_grain = kGrain / (job.channels() * job.out.size[4]) + 1;
    const Fold fold = job.groups == 0 ? fold_layer(job, n) : fold_groups(job, n, threads);
    parallel_for(rows, row_grain, threads,
                 [&](int64_t begin, int64_t end) { write_rows(job, fold, n, begin, end); });
}

}  // namespace

void bind_norm_act(pybind11::module_& m) {
    namespace py = pybind11;
    using Optional = std::optional<View>;
    m.def(
        "norm_act",
        [](const View& out, const View& x, const Optional& other, const View& weight, const View& bias,
           const Optional& scale, const Optional& shift, const Optional& add, int64_t groups, double eps, bool silu,
           int64_t pad, bool replicate, int threads) {
            py::gil_scoped_release unlocked;
            prefer_huge_pages(out);
            Job job;
            job.out = as_volume(out);
            job.parts = volumes(x, other);
            job.pad = {x.dims == 5 ? pad : 0, pad, pad};
            job.groups = groups;
            job.eps = eps;
            job.silu = silu;
            job.replicate = replicate;
            const int64_t samples = out.size[0], channels = out.size[1];
            const int64_t elements = channels * job.out.size[2] * job.out.size[3] * job.out.size[4];
            job.tell(weight, bias, scale, shift, add);
            each_sample(samples, elements, threads, [&](int64_t n, int share) { run_sample(job, n, share); });
        },
        py::arg("out"), py::arg("x"), py::arg("other"), py::arg("weight"), py::arg("bias"), py::arg("scale"),
        py::arg("shift"), py::arg("add"), py::arg("groups"), py::arg("eps"), py::arg("silu"), py::arg("pad"),
        py::arg("replicate"), py::arg("threads"),
        "Normalise [N, C, ...], or two joined on channels, into channels-last `out`; groups 0 is LayerNorm.");
}

}  // namespace scorefusion
