// Normalisation, FiLM and SiLU on the CPU, and their gradient: voxels go through float tiles in the first-level cache.
//
// Everything per channel is folded, in double, into y = (h - centre) * slope + offset; for LayerNorm (h - mean) * rstd
// of the voxel comes first. The gradient keeps nothing but norm_act's own arguments: LayerNorm's statistics are taken
// again voxel by voxel, in the one pass there is; GroupNorm takes its own again, adds up, and goes over the sample once
// more. Parts and their order depend on sizes and strides alone, so any number of threads gives the same bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/bind.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/processor.h"

namespace scorefusion {
namespace {

constexpr int64_t kTile = 4096;    // floats of a tile of whole voxels, unless one voxel has more
constexpr int64_t kHalf = 2048;    // floats of each of the gradient's two tiles, likewise
constexpr int kBlock = 64;         // voxels, and channels, of a block of statistics: 16 KiB of floats
constexpr int64_t kChunk = 4096;   // voxels of one partial statistic
constexpr int64_t kShare = 32768;  // elements of a chunk of the gradient, about
constexpr int64_t kGrain = 16384;  // elements worth waking a thread for
constexpr int kRow = 16;           // floats of the widest vector

// A tile's rows are whole vectors.
SF_INLINE int64_t padded(int64_t channels) { return (channels + kRow - 1) / kRow * kRow; }

// What each channel of a sample is moved and scaled by; zeros up to a whole vector.
struct Fold {
    explicit Fold(int64_t channels, bool gradient = false)
        : channels(channels), centre(padded(channels)), slope(centre), offset(centre),
          rstd(gradient ? padded(channels) : 0), moved(rstd), level(rstd), along(rstd) {}
    int64_t channels;
    bool shifted = false;  // whether any centre is not zero
    std::vector<float> centre, slope, offset;  // y = (h - centre) * slope + offset
    // For GroupNorm's gradient: unit = (h - centre) * rstd + moved, y = unit * slope + offset, and the group's means of
    // the gradient by unit, and of that times unit.
    std::vector<float> rstd, moved, level, along;
};

// What a gradient comes through; briefly if it is a bfloat16 one, which cannot hold more.
enum class Act { kNone, kSilu, kBriefSilu };

// The loops of one instruction set.
struct Loops {
    // Widens `voxels` voxels, `step` elements apart from element `start`, into rows of `tile`, `row` floats apart.
    void (*load_voxels)(const View& view, int64_t start, int64_t step, int64_t voxels, int64_t channels, float* tile,
                        int64_t row);
    // Over the voxels of a tile whose rows are kBlock floats: a first mean of each channel, what it lacks, and the
    // sum of squares about the mean.
    void (*block_moments)(const float* tile, int64_t voxels, int64_t channels, float* first, float* rest,
                          float* squares);
    // Of at most kTile / kRow voxels, normalises each over its channels (fold.centre is subtracted before), folds,
    // activates, stores.
    void (*finish_layer)(float* tile, int64_t voxels, const Fold& fold, float eps, bool silu, DType dtype, void* out);
    // Folds, activates and stores.
    void (*finish_group)(const float* tile, int64_t voxels, const Fold& fold, bool silu, DType dtype, void* out);

    // The gradient by the result, in `gradient`, becomes that by what was normalised; see norm_act_loops.h. Of
    // at most kTile / kRow voxels; `tile` is used up; adds to three rows of sums.
    void (*layer_gradient)(float* tile, float* gradient, int64_t voxels, const Fold& fold, float eps, Act act,
                           float* sums);
    // Adds to the first two of these rows only.
    void (*group_sums)(const float* tile, const float* gradient, int64_t voxels, const Fold& fold, Act act,
                       float* sums);
    void (*group_gradient)(const float* tile, float* gradient, int64_t voxels, const Fold& fold, Act act);
    // Narrows voxels of rows `row` floats apart into dense memory.
    void (*store_voxels)(const float* tile, int64_t row, int64_t voxels, int64_t channels, DType dtype, void* out);
};

#define SF_LOOPS "norm_act_loops.h"
#include "common/loops.h"

struct Job {
    View out;                 // the result [N, C, D + 2p, H + 2p, W + 2p], channels-last and dense, or its gradient
    std::vector<View> parts;  // one or two of [N, C_i, D, H, W]
    std::vector<double> slope, offset, add;  // [N, C]: weight (1 + scale); bias (1 + scale) + shift; add
    int64_t groups;                          // 0 is LayerNorm
    double eps;
    bool silu;
    const Loops& loops = SF_BEST(kLoops);

    // Forward only.
    std::array<int64_t, 3> pad{};  // z, y, x
    bool replicate = false;

    // Backward only: the gradient by each part, channels-last and dense; by sample and channel [N, C], over the voxels,
    // the gradient before the activation, that times the normalised value, and the gradient by the input.
    std::vector<View> results;
    std::vector<double> plain, leaning, inner;
    int64_t line = 0;

    Job(const View& out, const View& x, const View& other, const View& weight, const View& bias, const View& scale,
        const View& shift, const View& add, int64_t groups, double eps, bool silu);

    int64_t samples() const { return parts[0].size[0]; }
    int64_t channels() const { return parts[0].size[1] + (parts.size() > 1 ? parts[1].size[1] : 0); }
    int64_t size(int axis) const { return parts[0].size[2 + axis]; }
    int64_t voxels() const { return size(0) * size(1) * size(2); }
    int64_t chunks() const { return (voxels() + kChunk - 1) / kChunk; }
    int64_t chunk_size(int64_t chunk) const { return std::min(kChunk, voxels() - chunk * kChunk); }

    Act act() const { return !silu ? Act::kNone : out.dtype == DType::kBFloat16 ? Act::kBriefSilu : Act::kSilu; }
    int64_t half_voxels() const { return std::max<int64_t>(1, kHalf / padded(channels())); }
    int64_t share_voxels() const { return std::max<int64_t>(1, kShare / (half_voxels() * channels())) * half_voxels(); }
};

// [N, C], or [C] for every n, as doubles; `absent` where there is no view.
std::vector<double> widened(const View& view, int64_t samples, int64_t channels, double absent) {
    std::vector<double> out(samples * channels, absent);
    if (!view) return out;
    const int64_t across = view.stride[view.dims - 1], down = view.dims == 1 ? 0 : view.stride[0];
    dispatch(view.dtype, [&](auto* as) {
        const auto* source = static_cast<decltype(as)>(view.data);
        for (int64_t n = 0; n < samples; ++n) {
            for (int64_t c = 0; c < channels; ++c) out[n * channels + c] = to_float(source[n * down + c * across]);
        }
    });
    return out;
}

std::vector<View> volumes(const View& x, const View& other) {
    std::vector<View> parts{as_volume(x)};
    if (other) parts.push_back(as_volume(other));
    return parts;
}

Job::Job(const View& out, const View& x, const View& other, const View& weight, const View& bias, const View& scale,
         const View& shift, const View& added, int64_t groups, double eps, bool silu)
    : out(as_volume(out)), parts(volumes(x, other)), groups(groups), eps(eps), silu(silu) {
    const std::vector<double> gain = widened(scale, samples(), channels(), 0.0);
    const std::vector<double> moved = widened(shift, samples(), channels(), 0.0);
    slope = widened(weight, samples(), channels(), 1.0);
    offset = widened(bias, samples(), channels(), 0.0);
    add = widened(added, samples(), channels(), 0.0);
    for (size_t i = 0; i < gain.size(); ++i) {
        slope[i] *= 1.0 + gain[i];
        offset[i] = offset[i] * (1.0 + gain[i]) + moved[i];
    }
}

// How many voxels, in order, are evenly spaced in each of the views from the start of a line.
int64_t line_of(const std::vector<View>& views) {
    const View& one = views[0];
    const bool dense = std::all_of(views.begin(), views.end(), [](const View& view) {
        return view.stride[3] == view.size[4] * view.stride[4] &&
               (view.size[2] == 1 || view.stride[2] == view.size[3] * view.stride[3]);
    });
    return dense ? one.size[2] * one.size[3] * one.size[4] : one.size[4];
}

// The element of a view where voxel v of sample n starts.
int64_t start_of(const View& view, int64_t n, int64_t v) {
    const int64_t x = v % view.size[4], line = v / view.size[4];
    return view.at(n, int64_t{0}, line / view.size[3], line % view.size[3], x);
}

// Widens `count` evenly spaced voxels of sample n from voxel v on, all channels, into rows of `tile`.
void load_parts(const Job& job, int64_t n, int64_t v, int64_t count, float* tile) {
    const int64_t row = padded(job.channels());
    for (const View& part : job.parts) {
        job.loops.load_voxels(part, start_of(part, n, v), part.stride[4], count, part.size[1], tile, row);
        tile += part.size[1];
    }
}

// ---- statistics

// Partial statistics of a sample's channels, [chunks, C]: without `add`.
struct Partials {
    std::vector<double> mean, square;
};

struct Moments {
    double mean = 0.0, rstd = 0.0;
};

// Statistics of voxels [begin, end) of sample n, channel by channel: blocks by two passes, combined as Chan,
// Golub and LeVeque do.
void chunk_moments(const Job& job, int64_t n, int64_t begin, int64_t end, double* mean, double* square) {
    alignas(64) float tile[kBlock * kBlock] = {}, first[kBlock], rest[kBlock], squares[kBlock];
    const int64_t length = line_of(job.parts);
    std::fill(mean, mean + job.channels(), 0.0);
    std::fill(square, square + job.channels(), 0.0);
    int64_t count = 0;
    for (int64_t v = begin; v < end;) {
        const int64_t size = std::min({static_cast<int64_t>(kBlock), length - v % length, end - v});
        const double joined = static_cast<double>(count + size), weight = size / joined;
        int64_t c = 0;
        for (const View& part : job.parts) {
            const int64_t start = start_of(part, n, v);
            for (int64_t own = 0; own < part.size[1]; own += kBlock) {
                const int64_t channels = std::min<int64_t>(kBlock, part.size[1] - own);
                job.loops.load_voxels(part, start + own * part.stride[1], part.stride[4], size, channels, tile, kBlock);
                job.loops.block_moments(tile, size, channels, first, rest, squares);
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

Partials channel_moments(const Job& job, int64_t n, int threads) {
    const int64_t chunks = job.chunks(), channels = job.channels();
    Partials partials{std::vector<double>(chunks * channels), std::vector<double>(chunks * channels)};
    parallel_for(chunks, kGrain / (kChunk * channels) + 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t first = chunk * kChunk;
            chunk_moments(job, n, first, first + job.chunk_size(chunk), &partials.mean[chunk * channels],
                          &partials.square[chunk * channels]);
        }
    });
    return partials;
}

// Of each group.
std::vector<Moments> group_moments(const Job& job, int64_t n, const Partials& partials) {
    const int64_t channels = job.channels(), each = channels / job.groups, chunks = job.chunks();
    std::vector<Moments> moments(job.groups);
    for (int64_t group = 0; group < job.groups; ++group) {
        double count = 0.0, mean = 0.0, square = 0.0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const double size = static_cast<double>(job.chunk_size(chunk));
            for (int64_t c = group * each; c < (group + 1) * each; ++c) {
                const double apart = partials.mean[chunk * channels + c] + job.add[n * channels + c] - mean;
                const double weight = size / (count + size);
                mean += apart * weight;
                square += partials.square[chunk * channels + c] + apart * apart * (count * weight);
                count += size;
            }
        }
        moments[group] = {mean, 1.0 / std::sqrt(square / count + job.eps)};
    }
    return moments;
}

// ---- forward

// What each channel of sample n is moved and scaled by: GroupNorm's statistics folded in, LayerNorm's left out.
Fold fold_channels(const Job& job, int64_t n, int threads) {
    const int64_t channels = job.channels(), each = job.groups == 0 ? channels : channels / job.groups;
    std::vector<Moments> moments(1, {0.0, 1.0});
    if (job.groups != 0) moments = group_moments(job, n, channel_moments(job, n, threads));
    Fold fold(channels);
    for (int64_t c = 0; c < channels; ++c) {
        const Moments& group = moments[c / each];
        const double centre = group.mean - job.add[n * channels + c], slope = job.slope[n * channels + c] * group.rstd;
        fold.centre[c] = static_cast<float>(centre);
        fold.shifted |= fold.centre[c] != 0.0f;
        fold.slope[c] = static_cast<float>(slope);
        // What rounding cut off the centre: as large as 5e-4 at a mean of 1e4.
        fold.offset[c] = static_cast<float>(job.offset[n * channels + c] - (centre - fold.centre[c]) * slope);
    }
    return fold;
}

int64_t voxels_of_tile(int64_t channels) { return std::max<int64_t>(1, kTile / padded(channels)); }

// Writes row (n, z, y) of the padded output.
void write_row(const Job& job, const Fold& fold, int64_t n, int64_t z, int64_t y, float* tile) {
    const int64_t channels = job.channels(), width = job.size(2);
    const size_t voxel = channels * job.out.element_size();
    char* row = static_cast<char*>(job.out.data) +
                ((n * job.out.size[2] + z) * job.out.size[3] + y) * job.out.size[4] * voxel;
    const int64_t from_z = std::clamp<int64_t>(z - job.pad[0], 0, job.size(0) - 1);
    const int64_t from_y = std::clamp<int64_t>(y - job.pad[1], 0, job.size(1) - 1);
    if (!job.replicate && (from_z != z - job.pad[0] || from_y != y - job.pad[1])) {
        std::memset(row, 0, voxel * job.out.size[4]);
        return;
    }
    char* const first = row + job.pad[2] * voxel;
    const int64_t step = voxels_of_tile(channels);
    for (int64_t x = 0; x < width; x += step) {
        const int64_t size = std::min(step, width - x);
        load_parts(job, n, (from_z * job.size(1) + from_y) * width + x, size, tile);
        if (job.groups == 0) {
            const auto eps = static_cast<float>(job.eps);
            job.loops.finish_layer(tile, size, fold, eps, job.silu, job.out.dtype, first + x * voxel);
        } else {
            job.loops.finish_group(tile, size, fold, job.silu, job.out.dtype, first + x * voxel);
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

// One sample, its statistics and its rows shared among `threads`.
void run_sample(const Job& job, int64_t n, int threads) {
    const int64_t channels = job.channels(), height = job.out.size[3];
    const int64_t grain = kGrain / (channels * job.out.size[4]) + 1;
    const Fold fold = fold_channels(job, n, threads);
    parallel_for(job.out.size[2] * height, grain, threads, [&](int64_t begin, int64_t end) {
        std::vector<float> tile(voxels_of_tile(channels) * padded(channels));
        for (int64_t row = begin; row < end; ++row) write_row(job, fold, n, row / height, row % height, tile.data());
    });
}

// ---- backward

// Calls body(tile, gradient, voxels), then `leave` writes what is in `gradient`, over voxels [begin, end) of sample n.
template <typename Body>
void over_tiles(const Job& job, int64_t n, int64_t begin, int64_t end, bool leave, const Body& body) {
    const int64_t channels = job.channels(), row = padded(channels);
    std::vector<float> tile(job.half_voxels() * row), gradient(job.half_voxels() * row);
    for (int64_t v = begin; v < end;) {
        const int64_t size = std::min({job.half_voxels(), job.line - v % job.line, end - v});
        load_parts(job, n, v, size, tile.data());
        job.loops.load_voxels(job.out, start_of(job.out, n, v), job.out.stride[4], size, channels,
                          gradient.data(), row);
        body(tile.data(), gradient.data(), size);
        int64_t c = 0;
        for (const View& result : job.results) {
            if (!leave) break;
            const int64_t voxel = result.size[1] * result.element_size();
            char* out = static_cast<char*>(result.data) + (n * job.voxels() + v) * voxel;
            job.loops.store_voxels(gradient.data() + c, row, size, result.size[1], result.dtype, out);
            c += result.size[1];
        }
        for (int64_t i = 0; row != channels && i < size; ++i) {  // beyond the channels is nothing
            std::fill_n(tile.data() + i * row + channels, row - channels, 0.0f);
            std::fill_n(gradient.data() + i * row + channels, row - channels, 0.0f);
        }
        v += size;
    }
}

// Calls body(first, last, sums) for each chunk of voxels, on several threads, and adds up its rows of sums in order.
template <typename Body>
void over_chunks(const Job& job, int threads, const std::vector<double*>& totals, const Body& body) {
    const int64_t channels = job.channels(), row = padded(channels), part = job.share_voxels();
    const int64_t chunks = (job.voxels() + part - 1) / part;
    const int64_t rows = static_cast<int64_t>(totals.size());
    std::vector<float> sums(chunks * rows * row);
    parallel_for(chunks, kGrain / (part * channels) + 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t first = chunk * part;
            body(first, std::min(first + part, job.voxels()), sums.data() + chunk * rows * row);
        }
    });
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int64_t i = 0; i < rows; ++i) {
            const float* from = sums.data() + (chunk * rows + i) * row;
            for (int64_t c = 0; c < channels; ++c) totals[i][c] += from[c];
        }
    }
}

void layer_sample(Job& job, int64_t n, int threads) {
    const Fold fold = fold_channels(job, n, 1);
    const auto eps = static_cast<float>(job.eps);
    const int64_t at = n * job.channels();
    over_chunks(job, threads, {&job.plain[at], &job.leaning[at], &job.inner[at]},
                [&](int64_t begin, int64_t end, float* sums) {
                    over_tiles(job, n, begin, end, true, [&](float* tile, float* gradient, int64_t voxels) {
                        job.loops.layer_gradient(tile, gradient, voxels, fold, eps, job.act(), sums);
                    });
                });
}

void group_sample(Job& job, int64_t n, int threads) {
    const int64_t channels = job.channels(), each = channels / job.groups, at = n * channels;
    const Partials partials = channel_moments(job, n, threads);
    const std::vector<Moments> moments = group_moments(job, n, partials);
    Fold fold(channels, true);
    for (int64_t c = 0; c < channels; ++c) {
        const Moments& group = moments[c / each];
        const double centre = group.mean - job.add[at + c];
        fold.centre[c] = static_cast<float>(centre);
        fold.rstd[c] = static_cast<float>(group.rstd);
        fold.moved[c] = static_cast<float>((fold.centre[c] - centre) * group.rstd);
        fold.slope[c] = static_cast<float>(job.slope[at + c]);
        fold.offset[c] = static_cast<float>(job.offset[at + c]);
    }
    over_chunks(job, threads, {&job.plain[at], &job.leaning[at]}, [&](int64_t begin, int64_t end, float* sums) {
        over_tiles(job, n, begin, end, false, [&](float* tile, float* gradient, int64_t voxels) {
            job.loops.group_sums(tile, gradient, voxels, fold, job.act(), sums);
        });
    });
    const auto voxels = static_cast<double>(job.voxels());
    for (int64_t group = 0; group < job.groups; ++group) {
        double level = 0.0, along = 0.0;
        for (int64_t c = group * each; c < (group + 1) * each; ++c) {
            level += job.slope[at + c] * job.plain[at + c] / (each * voxels);
            along += job.slope[at + c] * job.leaning[at + c] / (each * voxels);
        }
        for (int64_t c = group * each; c < (group + 1) * each; ++c) {
            fold.level[c] = static_cast<float>(level);
            fold.along[c] = static_cast<float>(along);
            double units = 0.0;  // the normalised values of this channel, added up
            for (int64_t chunk = 0; chunk * channels < static_cast<int64_t>(partials.mean.size()); ++chunk) {
                const double apart = partials.mean[chunk * channels + c] + job.add[at + c] - moments[group].mean;
                units += apart * moments[group].rstd * static_cast<double>(job.chunk_size(chunk));
            }
            job.inner[at + c] = moments[group].rstd *
                                (job.slope[at + c] * job.plain[at + c] - voxels * level - units * along);
        }
    }
    over_chunks(job, threads, {}, [&](int64_t begin, int64_t end, float*) {
        over_tiles(job, n, begin, end, true, [&](float* tile, float* gradient, int64_t size) {
            job.loops.group_gradient(tile, gradient, size, fold, job.act());
        });
    });
}

// Writes value(n, c) into [N, C], or into [C] what its samples add up to.
template <typename Value>
void write(const View& view, int64_t samples, int64_t channels, const Value& value) {
    if (!view) return;
    dispatch(view.dtype, [&](auto* as) {
        using T = std::remove_pointer_t<decltype(as)>;
        auto* out = static_cast<T*>(view.data);
        for (int64_t c = 0; c < channels; ++c) {
            double sum = 0.0;
            for (int64_t n = 0; n < samples; ++n) {
                const double one = value(n * channels + c, c);
                sum += one;
                if (view.dims == 2) out[n * channels + c] = from_float<T>(static_cast<float>(one));
            }
            if (view.dims == 1) out[c] = from_float<T>(static_cast<float>(sum));
        }
    });
}

// Calls body(n, threads) for each sample: samples one after another, each shared among the threads, so that a second
// reading finds it in a cache that it fits; or many at once.
template <typename Body>
void each_sample(int64_t samples, int64_t elements, int threads, const Body& body) {
    if (samples < 4 * threads) {
        for (int64_t n = 0; n < samples; ++n) body(n, threads);
        return;
    }
    parallel_for(samples, kGrain / elements + 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) body(n, 1);
    });
}

}  // namespace

void bind_norm_act(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "norm_act",
        [](const View& out, const View& x, const View& other, const View& weight, const View& bias, const View& scale,
           const View& shift, const View& add, int64_t groups, double eps, bool silu, int64_t pad, bool replicate,
           int threads) {
            py::gil_scoped_release unlocked;
            prefer_huge_pages(out);
            Job job(out, x, other, weight, bias, scale, shift, add, groups, eps, silu);
            job.pad = {x.dims == 5 ? pad : 0, pad, pad};
            job.replicate = replicate;
            const int64_t elements = out.size[1] * job.out.size[2] * job.out.size[3] * job.out.size[4];
            each_sample(job.samples(), elements, threads, [&](int64_t n, int share) { run_sample(job, n, share); });
        },
        "Normalise [N, C, ...], or two joined on channels, into channels-last `out`; groups 0 is LayerNorm.");
    m.def(
        "norm_act_backward",
        [](const std::vector<View>& results, const View& gradient, const View& x, const View& other,
           const View& weight, const View& bias, const View& scale, const View& shift, const View& add, int64_t groups,
           double eps, bool silu, int threads) {
            py::gil_scoped_release unlocked;
            Job job(gradient, x, other, weight, bias, scale, shift, add, groups, eps, silu);
            job.results = volumes(results.at(0), results.at(1));
            for (const View& result : job.results) prefer_huge_pages(result);
            std::vector<View> read = job.parts;
            read.push_back(job.out);
            job.line = line_of(read);
            const int64_t samples = job.samples(), channels = job.channels();
            job.plain.resize(samples * channels);
            job.leaning = job.inner = job.plain;
            each_sample(samples, channels * job.voxels(), threads, [&](int64_t n, int share) {
                groups == 0 ? layer_sample(job, n, share) : group_sample(job, n, share);
            });
            const std::vector<double> gain = widened(scale, samples, channels, 0.0);
            const std::vector<double> weights = widened(weight, 1, channels, 1.0);
            const std::vector<double> biases = widened(bias, 1, channels, 0.0);
            const std::vector<double>&plain = job.plain, &leaning = job.leaning;
            write(results.at(2), samples, channels, [&](int64_t i, int64_t) { return (1.0 + gain[i]) * leaning[i]; });
            write(results.at(3), samples, channels, [&](int64_t i, int64_t) { return (1.0 + gain[i]) * plain[i]; });
            write(results.at(4), samples, channels,
                  [&](int64_t i, int64_t c) { return weights[c] * leaning[i] + biases[c] * plain[i]; });
            write(results.at(5), samples, channels, [&](int64_t i, int64_t) { return plain[i]; });
            write(results.at(6), samples, channels, [&](int64_t i, int64_t) { return job.inner[i]; });
        },
        "Gradients by x, other, weight, bias, scale, shift, add into dense `results`, the first two channels-last.");
}

}  // namespace scorefusion
