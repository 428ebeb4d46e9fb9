// What is known of each channel, and GroupNorm's statistics; see norm_act_job.h.
#include "norm_act_job.h"

#include <algorithm>
#include <cmath>

namespace scorefusion {
namespace {

constexpr int64_t kChunk = 4096;  // voxels of one partial statistic

int64_t chunks_of(const NormJob& job) { return (job.voxels() + kChunk - 1) / kChunk; }

// Statistics of voxels [begin, end) of sample n, channel by channel: blocks by two passes, combined as Chan,
// Golub and LeVeque do.
void chunk_moments(const NormJob& job, int64_t n, int64_t begin, int64_t end, double* mean, double* square) {
    const TileLoops& loops = tile_loops();
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

}  // namespace

void NormJob::tell(const View& weight, const View& bias, const std::optional<View>& scale,
                   const std::optional<View>& shift, const std::optional<View>& added) {
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

std::vector<View> volumes(const View& x, const std::optional<View>& other) {
    std::vector<View> parts{as_volume(x)};
    if (other) parts.push_back(as_volume(*other));
    return parts;
}

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

int64_t line_of(const std::vector<View>& views) {
    const View& one = views[0];
    const bool dense = std::all_of(views.begin(), views.end(), [](const View& view) {
        return view.stride[3] == view.size[4] * view.stride[4] &&
               (view.size[2] == 1 || view.stride[2] == view.size[3] * view.stride[3]);
    });
    return dense ? one.size[2] * one.size[3] * one.size[4] : one.size[4];
}

Fold fold_layer(const NormJob& job, int64_t n) {
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

int64_t chunk_size(const NormJob& job, int64_t chunk) { return std::min(kChunk, job.voxels() - chunk * kChunk); }

Partials channel_moments(const NormJob& job, int64_t n, int threads) {
    const int64_t chunks = chunks_of(job), channels = job.channels();
    Partials partials{std::vector<double>(chunks * channels), std::vector<double>(chunks * channels)};
    parallel_for(chunks, kGrain / (kChunk * channels) + 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t first = chunk * kChunk;
            chunk_moments(job, n, first, first + chunk_size(job, chunk), &partials.mean[chunk * channels],
                          &partials.square[chunk * channels]);
        }
    });
    return partials;
}

std::vector<Moments> group_moments(const NormJob& job, int64_t n, const Partials& partials) {
    const int64_t channels = job.channels(), each = channels / job.groups, chunks = chunks_of(job);
    std::vector<Moments> moments(job.groups);
    for (int64_t group = 0; group < job.groups; ++group) {
        double count = 0.0, mean = 0.0, square = 0.0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const double size = static_cast<double>(chunk_size(job, chunk));
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

}  // namespace scorefusion
