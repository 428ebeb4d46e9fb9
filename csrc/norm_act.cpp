// Normalisation, FiLM and SiLU on the CPU: voxels go through a float tile that stays in the first-level cache.
//
// Everything per channel is folded, in double, into y = (h - centre) * slope + offset; for LayerNorm (h - mean)
// * rstd of the voxel comes first. Parts and their order depend on sizes alone, so any number of threads
// gives the same bits.
#include "norm_act.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "bind.h"
#include "pages.h"
#include "parallel.h"

namespace scorefusion {
namespace {

constexpr int64_t kChunk = 4096;   // voxels of one partial statistic
constexpr int64_t kGrain = 16384;  // elements worth waking a thread for

struct Job {
    View out;                  // [N, C, D + 2p, H + 2p, W + 2p], channels-last and dense
    std::vector<View> parts;   // one or two of [N, C_i, D, H, W]
    std::vector<double> slope, offset, add;  // [N, C]: weight (1 + scale); bias (1 + scale) + shift; add
    std::array<int64_t, 3> pad{};            // z, y, x
    int64_t groups = 0;                      // 0 is LayerNorm
    double eps = 0.0;
    bool silu = false, replicate = false;

    int64_t channels() const { return out.size[1]; }
    int64_t inner(int axis) const { return parts[0].size[2 + axis]; }
    int64_t voxels() const { return inner(0) * inner(1) * inner(2); }
};

// [N, C, H, W] as [N, C, 1, H, W].
View as_volume(const View& view) {
    if (view.dims == 5) return view;
    View volume = view;
    volume.dims = 5;
    for (int i = 4; i > 2; --i) {
        volume.size[i] = view.size[i - 1];
        volume.stride[i] = view.stride[i - 1];
    }
    volume.size[2] = 1;
    volume.stride[2] = 0;
    return volume;
}

// [N, C], or [C] for every n, as doubles; `absent` where there is no view.
std::vector<double> widened(const std::optional<View>& view, int64_t samples, int64_t channels, double absent) {
    std::vector<double> out(samples * channels, absent);
    if (!view) return out;
    const int64_t across = view->stride[view->dims - 1], down = view->dims == 1 ? 0 : view->stride[0];
    dispatch(view->dtype, [&](auto* as) {
        const auto* source = static_cast<decltype(as)>(view->data);
        for (int64_t n = 0; n < samples; ++n) {
            for (int64_t c = 0; c < channels; ++c) out[n * channels + c] = to_float(source[n * down + c * across]);
        }
    });
    return out;
}

Fold fold_layer(const Job& job, int64_t n) {
    const int64_t channels = job.channels();
    Fold fold(channels);
    for (int64_t c = 0; c < channels; ++c) {
        fold.centre[c] = static_cast<float>(-job.add[n * channels + c]);
        fold.shifted |= fold.centre[c] != 0.0f;
        fold.slope[c] = static_cast<float>(job.slope[n * channels + c]);
        fold.offset[c] = static_cast<float>(job.offset[n * channels + c]);
    }
    return fold;
}

// ---- GroupNorm's statistics

// Partial statistics of one sample, [chunks, C].
struct Partials {
    std::vector<double> mean, square;
};

int64_t chunks_of(const Job& job) { return (job.voxels() + kChunk - 1) / kChunk; }

// Statistics of voxels [begin, end) of sample n, channel by channel: blocks by two passes, combined as Chan,
// Golub and LeVeque do.
void chunk_moments(const Job& job, int64_t n, int64_t begin, int64_t end, double* mean, double* square) {
    const TileLoops& loops = tile_loops();
    alignas(64) float tile[kBlock * kBlock] = {}, first[kBlock], rest[kBlock], squares[kBlock];
    const int64_t height = job.inner(1), width = job.inner(2);
    const bool dense = std::all_of(job.parts.begin(), job.parts.end(), [&](const View& part) {
        return part.stride[3] == width * part.stride[4] &&
               (part.size[2] == 1 || part.stride[2] == height * part.stride[3]);
    });
    const int64_t length = dense ? job.voxels() : width;
    std::fill(mean, mean + job.channels(), 0.0);
    std::fill(square, square + job.channels(), 0.0);
    int64_t count = 0;
    for (int64_t v = begin; v < end;) {
        const int64_t line = v / length, x = v % length;
        const int64_t size = std::min({static_cast<int64_t>(kBlock), length - x, end - v});
        const double joined = static_cast<double>(count + size), weight = size / joined;
        int64_t c = 0;
        for (const View& part : job.parts) {
            const int64_t start = n * part.stride[0] + line / height * part.stride[2] +
                                  line % height * part.stride[3] + x * part.stride[4];
            for (int64_t own = 0; own < part.size[1]; own += kBlock) {
                const int64_t channels = std::min<int64_t>(kBlock, part.size[1] - own);
                loops.load_voxels(part, start + own * part.stride[1], part.stride[4], size, channels, tile, kBlock);
                loops.block_moments(tile, size, channels, first, rest, squares);
                for (int64_t i = 0; i < channels; ++i, ++c) {
                    const double apart = static_cast<double>(first[i]) + rest[i] - mean[c];
                    mean[c] += apart * weight;
                    square[c] += squares[i] + apart * apart * (count * weight);
                }
            }
        }
        count += size;
        v += size;
    }
}

// From partial statistics to what each channel of sample n is moved and scaled by.
Fold fold_groups(const Job& job, int64_t n, const Partials& partials) {
    const int64_t channels = job.channels(), each = channels / job.groups, chunks = chunks_of(job);
    Fold fold(channels);
    for (int64_t group = 0; group < job.groups; ++group) {
        double count = 0.0, mean = 0.0, square = 0.0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const double size = static_cast<double>(std::min(kChunk, job.voxels() - chunk * kChunk));
            for (int64_t c = group * each; c < (group + 1) * each; ++c) {
                const double apart = partials.mean[chunk * channels + c] + job.add[n * channels + c] - mean;
                const double weight = size / (count + size);
                mean += apart * weight;
                square += partials.square[chunk * channels + c] + apart * apart * (count * weight);
                count += size;
            }
        }
        const double rstd = 1.0 / std::sqrt(square / count + job.eps);
        for (int64_t c = group * each; c < (group + 1) * each; ++c) {
            const double centre = mean - job.add[n * channels + c], slope = job.slope[n * channels + c] * rstd;
            fold.centre[c] = static_cast<float>(centre);
            fold.slope[c] = static_cast<float>(slope);
            // What rounding cut off the centre: as large as 5e-4 at a mean of 1e4.
            fold.offset[c] = static_cast<float>(job.offset[n * channels + c] - (centre - fold.centre[c]) * slope);
        }
    }
    return fold;
}

// ---- writing

size_t bytes_of(const View& view) { return view.dtype == DType::kFloat32 ? 4 : 2; }

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
    Fold fold(0);
    if (job.groups == 0) {
        fold = fold_layer(job, n);
    } else {
        const int64_t chunks = chunks_of(job), channels = job.channels();
        Partials partials{std::vector<double>(chunks * channels), std::vector<double>(chunks * channels)};
        parallel_for(chunks, kGrain / (kChunk * channels) + 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t chunk = begin; chunk < end; ++chunk) {
                chunk_moments(job, n, chunk * kChunk, std::min((chunk + 1) * kChunk, job.voxels()),
                              &partials.mean[chunk * channels], &partials.square[chunk * channels]);
            }
        });
        fold = fold_groups(job, n, partials);
    }
    parallel_for(rows, row_grain, threads,
                 [&](int64_t begin, int64_t end) { write_rows(job, fold, n, begin, end); });
}

void run(const Job& job, int threads) {
    const int64_t samples = job.out.size[0];
    if (samples < 4 * threads) {
        for (int64_t n = 0; n < samples; ++n) run_sample(job, n, threads);
        return;
    }
    const int64_t elements = job.channels() * job.out.size[2] * job.out.size[3] * job.out.size[4];
    parallel_for(samples, kGrain / elements + 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) run_sample(job, n, 1);
    });
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
            job.parts.push_back(as_volume(x));
            if (other) job.parts.push_back(as_volume(*other));
            job.pad = {x.dims == 5 ? pad : 0, pad, pad};
            job.groups = groups;
            job.eps = eps;
            job.silu = silu;
            job.replicate = replicate;
            const int64_t samples = out.size[0], channels = out.size[1];
            const std::vector<double> gain = widened(scale, samples, channels, 0.0);
            const std::vector<double> moved = widened(shift, samples, channels, 0.0);
            job.slope = widened(weight, samples, channels, 1.0);
            job.offset = widened(bias, samples, channels, 0.0);
            job.add = widened(add, samples, channels, 0.0);
            for (size_t i = 0; i < gain.size(); ++i) {
                job.slope[i] *= 1.0 + gain[i];
                job.offset[i] = job.offset[i] * (1.0 + gain[i]) + moved[i];
            }
            run(job, threads);
        },
        py::arg("out"), py::arg("x"), py::arg("other"), py::arg("weight"), py::arg("bias"), py::arg("scale"),
        py::arg("shift"), py::arg("add"), py::arg("groups"), py::arg("eps"), py::arg("silu"), py::arg("pad"),
        py::arg("replicate"), py::arg("threads"),
        "Normalise [N, C, ...], or two joined on channels, into channels-last `out`; groups 0 is LayerNorm.");
}

}  // namespace scorefusion
