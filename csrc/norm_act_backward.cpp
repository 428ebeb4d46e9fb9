// The gradient of norm_act on the CPU: tiles of the input and of the result's gradient stay in the first-level cache.
//
// Nothing but norm_act's own arguments is kept from the forward pass: LayerNorm's statistics are taken again voxel by
// voxel, in the one pass there is; GroupNorm takes its own again, adds up, and goes over the sample once more. Sums
// over voxels are float within a chunk and double across: chunks depend on sizes and strides alone, so any number of
// threads gives the same bits.
#include <algorithm>
#include <optional>
#include <vector>

#include "bind.h"
#include "norm_act.h"
#include "norm_act_job.h"
#include "pages.h"
#include "parallel.h"

namespace scorefusion {
namespace {

constexpr int64_t kPart = 2048;    // floats of each of the two tiles, unless one voxel has more
constexpr int64_t kShare = 32768;  // elements of a chunk, about

struct Job : NormJob {
    View gradient;              // by the result [N, C, D, H, W]
    std::vector<View> results;  // by each part, channels-last and dense

    // By sample and channel [N, C], over the voxels: the gradient before the activation, that times the normalised
    // value, and the gradient by the input.
    std::vector<double> plain, leaning, inner;

    int64_t line = 0;

    Act act() const {
        return !silu ? Act::kNone : gradient.dtype == DType::kBFloat16 ? Act::kBriefSilu : Act::kSilu;
    }
    int64_t tile_voxels() const { return std::max<int64_t>(1, kPart / padded(channels())); }
    int64_t chunk_voxels() const { return std::max<int64_t>(1, kShare / (tile_voxels() * channels())) * tile_voxels(); }
    int64_t chunks() const { return (voxels() + chunk_voxels() - 1) / chunk_voxels(); }
};

// Calls body(tile, gradient, voxels), then `leave` writes what is in `gradient`, over voxels [begin, end) of sample n.
template <typename Body>
void over_tiles(const Job& job, int64_t n, int64_t begin, int64_t end, bool leave, const Body& body) {
    const TileLoops& loops = tile_loops();
    const int64_t channels = job.channels(), row = padded(channels);
    std::vector<float> tile(job.tile_voxels() * row), gradient(job.tile_voxels() * row);
    for (int64_t v = begin; v < end;) {
        const int64_t size = std::min({job.tile_voxels(), job.line - v % job.line, end - v});
        int64_t c = 0;
        for (const View& part : job.parts) {
            loops.load_voxels(part, start_of(part, n, v), part.stride[4], size, part.size[1], tile.data() + c, row);
            c += part.size[1];
        }
        loops.load_voxels(job.gradient, start_of(job.gradient, n, v), job.gradient.stride[4], size, channels,
                          gradient.data(), row);
        body(tile.data(), gradient.data(), size);
        c = 0;
        for (const View& result : job.results) {
            if (!leave) break;
            const int64_t voxel = result.size[1] * static_cast<int64_t>(bytes_of(result));
            char* out = static_cast<char*>(result.data) + (n * job.voxels() + v) * voxel;
            loops.store_voxels(gradient.data() + c, row, size, result.size[1], result.dtype, out);
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
    const int64_t channels = job.channels(), row = padded(channels), chunks = job.chunks();
    const int64_t rows = static_cast<int64_t>(totals.size());
    std::vector<float> sums(chunks * rows * row);
    parallel_for(chunks, kGrain / (job.chunk_voxels() * channels) + 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t first = chunk * job.chunk_voxels();
            body(first, std::min(first + job.chunk_voxels(), job.voxels()), sums.data() + chunk * rows * row);
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
    const TileLoops& loops = tile_loops();
    const Fold fold = fold_layer(job, n);
    const auto eps = static_cast<float>(job.eps);
    const int64_t at = n * job.channels();
    over_chunks(job, threads, {&job.plain[at], &job.leaning[at], &job.inner[at]},
                [&](int64_t begin, int64_t end, float* sums) {
                    over_tiles(job, n, begin, end, true, [&](float* tile, float* gradient, int64_t voxels) {
                        loops.layer_gradient(tile, gradient, voxels, fold, eps, job.act(), sums);
                    });
                });
}

void group_sample(Job& job, int64_t n, int threads) {
    const TileLoops& loops = tile_loops();
    const int64_t channels = job.channels(), each = channels / job.groups, at = n * channels;
    const Partials partials = channel_moments(job, n, threads);
    const std::vector<Moments> moments = group_moments(job, n, partials);
    GroupFold fold(channels);
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
            loops.group_sums(tile, gradient, voxels, fold, job.act(), sums);
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
                units += apart * moments[group].rstd * static_cast<double>(chunk_size(job, chunk));
            }
            job.inner[at + c] = moments[group].rstd *
                                (job.slope[at + c] * job.plain[at + c] - voxels * level - units * along);
        }
    }
    over_chunks(job, threads, {}, [&](int64_t begin, int64_t end, float*) {
        over_tiles(job, n, begin, end, true, [&](float* tile, float* gradient, int64_t size) {
            loops.group_gradient(tile, gradient, size, fold, job.act());
        });
    });
}

// Writes value(n, c) into [N, C], or into [C] what its samples add up to.
template <typename Value>
void write(const std::optional<View>& view, int64_t samples, int64_t channels, const Value& value) {
    if (!view) return;
    dispatch(view->dtype, [&](auto* as) {
        using T = std::remove_pointer_t<decltype(as)>;
        auto* out = static_cast<T*>(view->data);
        for (int64_t c = 0; c < channels; ++c) {
            double sum = 0.0;
            for (int64_t n = 0; n < samples; ++n) {
                const double one = value(n * channels + c, c);
                sum += one;
                if (view->dims == 2) out[n * channels + c] = from_float<T>(static_cast<float>(one));
            }
            if (view->dims == 1) out[c] = from_float<T>(static_cast<float>(sum));
        }
    });
}

}  // namespace

void bind_norm_act_backward(pybind11::module_& m) {
    namespace py = pybind11;
    using Optional = std::optional<View>;
    m.def(
        "norm_act_backward",
        [](const std::vector<Optional>& results, const View& gradient, const View& x, const Optional& other,
           const View& weight, const View& bias, const Optional& scale, const Optional& shift, const Optional& add,
           int64_t groups, double eps, bool silu, int threads) {
            py::gil_scoped_release unlocked;
            Job job;
            job.parts = volumes(x, other);
            job.gradient = as_volume(gradient);
            job.results = volumes(results.at(0).value(), results.at(1));
            for (const View& result : job.results) prefer_huge_pages(result);
            job.groups = groups;
            job.eps = eps;
            job.silu = silu;
            std::vector<View> read = job.parts;
            read.push_back(job.gradient);
            job.line = line_of(read);
            job.tell(weight, bias, scale, shift, add);
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
        py::arg("results"), py::arg("gradient"), py::arg("x"), py::arg("other"), py::arg("weight"), py::arg("bias"),
        py::arg("scale"), py::arg("shift"), py::arg("add"), py::arg("groups"), py::arg("eps"), py::arg("silu"),
        py::arg("threads"),
        "Gradients by x, other, weight, bias, scale, shift, add into dense `results`, the first two channels-last.");
}

}  // namespace scorefusion
