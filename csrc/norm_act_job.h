// What norm_act and its gradient have in common: the tensors, what is known of each channel, GroupNorm's statistics.
// Parts and their order depend on sizes and strides alone, so any number of threads gives the same bits.
#pragma once

#include <optional>
#include <vector>

#include "norm_act.h"
#include "parallel.h"

namespace scorefusion {

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for

struct NormJob {
    std::vector<View> parts;  // one or two of [N, C_i, D, H, W]
    // [N, C]: weight (1 + scale); bias (1 + scale) + shift; add
    std::vector<double> slope, offset, add;
    int64_t groups = 0;  // 0 is LayerNorm
    double eps = 0.0;
    bool silu = false;

    int64_t samples() const { return parts[0].size[0]; }
    int64_t channels() const { return parts[0].size[1] + (parts.size() > 1 ? parts[1].size[1] : 0); }
    int64_t inner(int axis) const { return parts[0].size[2 + axis]; }
    int64_t voxels() const { return inner(0) * inner(1) * inner(2); }

    // Sets slope, offset and add.
    void tell(const View& weight, const View& bias, const std::optional<View>& scale, const std::optional<View>& shift,
              const std::optional<View>& add);
};

inline size_t bytes_of(const View& view) { return view.dtype == DType::kFloat32 ? 4 : 2; }

// [N, C, H, W] as [N, C, 1, H, W].
View as_volume(const View& view);

std::vector<View> volumes(const View& x, const std::optional<View>& other);

// [N, C], or [C] for every n, as doubles; `absent` where there is no view.
std::vector<double> widened(const std::optional<View>& view, int64_t samples, int64_t channels, double absent);

// How many voxels, in order, are evenly spaced in each of the views from the start of a line.
int64_t line_of(const std::vector<View>& views);

// The element of a view where voxel v of sample n starts.
inline int64_t start_of(const View& view, int64_t n, int64_t v) {
    const int64_t x = v % view.size[4], line = v / view.size[4];
    return n * view.stride[0] + line / view.size[3] * view.stride[2] + line % view.size[3] * view.stride[3] +
           x * view.stride[4];
}

Fold fold_layer(const NormJob& job, int64_t n);

// Partial statistics of a sample's channels, [chunks, C]: without `add`.
struct Partials {
    std::vector<double> mean, square;
};

Partials channel_moments(const NormJob& job, int64_t n, int threads);

// Voxels of a chunk of Partials.
int64_t chunk_size(const NormJob& job, int64_t chunk);

struct Moments {
    double mean = 0.0, rstd = 0.0;
};

// Of each group.
std::vector<Moments> group_moments(const NormJob& job, int64_t n, const Partials& partials);

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

}  // namespace scorefusion
