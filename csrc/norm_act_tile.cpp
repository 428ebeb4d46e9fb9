// The vector loops of norm_act, over one tile in the first-level cache.
#include <algorithm>

#include "norm_act.h"

namespace scorefusion {
namespace {

template <typename T>
SF_INLINE void load_as(const View& view, int64_t start, int64_t step, int64_t voxels, int64_t channels,
                       float* __restrict tile, int64_t row) {
    const T* __restrict source = static_cast<const T*>(view.data) + start;
    const int64_t across = view.stride[1];
    if (across == 1) {
        for (int64_t v = 0; v < voxels; ++v) {
            for (int64_t c = 0; c < channels; ++c) tile[v * row + c] = to_float(source[v * step + c]);
        }
        return;
    }
    // Eight voxels and eight channels at a time through a square that the compiler turns in registers.
    int64_t c = 0;
    for (; step == 1 && c + kLanes <= channels; c += kLanes) {
        int64_t v = 0;
        for (; v + kLanes <= voxels; v += kLanes) {
            float square[kLanes][kLanes];
            for (int i = 0; i < kLanes; ++i) {
                for (int j = 0; j < kLanes; ++j) square[i][j] = to_float(source[(c + i) * across + v + j]);
            }
            for (int j = 0; j < kLanes; ++j) {
                for (int i = 0; i < kLanes; ++i) tile[(v + j) * row + c + i] = square[i][j];
            }
        }
        for (; v < voxels; ++v) {
            for (int i = 0; i < kLanes; ++i) tile[v * row + c + i] = to_float(source[(c + i) * across + v]);
        }
    }
    for (; c < channels; ++c) {
        for (int64_t v = 0; v < voxels; ++v) tile[v * row + c] = to_float(source[c * across + v * step]);
    }
}

// Of `voxels` <= kLanes rows: mean, what rounding left of it, and variance, by two passes. Eight voxels at once,
// because summing across the lanes of one takes longer than summing its channels.
SF_INLINE void moments(const float* h, int64_t voxels, int64_t count, Lanes last, float* mean, float* rest,
                       float* variance) {
    const int64_t row = padded(count), whole = row - kLanes;
    const Lanes none = spread(0.0f), share = spread(1.0f / static_cast<float>(count));
    Lanes sums[kLanes], squares[kLanes];
    for (int v = 0; v < kLanes; ++v) sums[v] = squares[v] = none;
    for (int64_t v = 0; v < voxels; ++v) {
        Lanes sum = load_lanes(h + v * row + whole);
        for (int64_t c = 0; c < whole; c += kLanes) sum = sum + load_lanes(h + v * row + c);
        sums[v] = sum;
    }
    store_lanes(mean, sums_of(sums) * share);
    for (int64_t v = 0; v < voxels; ++v) {
        const Lanes centre = spread(mean[v]);
        Lanes sum = (load_lanes(h + v * row + whole) - centre) * last, square = sum * sum;
        for (int64_t c = 0; c < whole; c += kLanes) {
            const Lanes apart = load_lanes(h + v * row + c) - centre;
            sum = sum + apart;
            square = square + apart * apart;
        }
        sums[v] = sum;
        squares[v] = square;
    }
    const Lanes left = sums_of(sums) * share;
    store_lanes(rest, left);
    store_lanes(variance, sums_of(squares) * share - left * left);
}

// Ones, and zeros beyond the channels of the last vector of a row.
SF_INLINE Lanes last_lanes(int64_t channels) {
    float ones[kLanes];
    for (int i = 0; i < kLanes; ++i) ones[i] = padded(channels) - kLanes + i < channels ? 1.0f : 0.0f;
    return load_lanes(ones);
}

// Writes y(c) of every vector of a voxel; the last may be partial. What is stored is never read back here: a wide
// load of two narrower stores would wait for both to reach the cache.
template <bool kSilu, typename T, typename Value>
SF_INLINE void write_voxel(int64_t channels, T* __restrict out, const Value& y) {
    const int64_t whole = channels / kLanes * kLanes;
    for (int64_t c = 0; c < whole; c += kLanes) narrow_lanes(kSilu ? silu(y(c)) : y(c), out + c);
    if (whole == channels) return;
    T rest[kLanes];
    narrow_lanes(kSilu ? silu(y(whole)) : y(whole), rest);
    for (int64_t c = whole; c < channels; ++c) out[c] = rest[c - whole];
}

template <bool kSilu, typename T>
SF_INLINE void layer_as(float* tile, int64_t voxels, const Fold& fold, float eps, T* out) {
    const int64_t channels = fold.channels, row = padded(channels);
    const float *centre = fold.centre.data(), *slope = fold.slope.data(), *offset = fold.offset.data();
    const Lanes last = last_lanes(channels);
    // All voxels' moments before any voxel's activation: the long chains of several then run side by side.
    float mean[kTile / kLanes], rest[kTile / kLanes], variance[kTile / kLanes];
    for (int64_t v = 0; fold.shifted && v < voxels; ++v) {
        float* h = tile + v * row;
        for (int64_t c = 0; c < row; c += kLanes) store_lanes(h + c, load_lanes(h + c) - load_lanes(centre + c));
    }
    for (int64_t v = 0; v < voxels; v += kLanes) {
        moments(tile + v * row, std::min<int64_t>(kLanes, voxels - v), channels, last, mean + v, rest + v,
                variance + v);
    }
    for (int64_t v = 0; v < voxels; ++v) {
        const float* h = tile + v * row;
        // (h - mean) * rstd - rest * rstd has mean 0 and variance 1.
        const float rstd = 1.0f / std::sqrt(std::max(variance[v], 0.0f) + eps);
        const Lanes first = spread(mean[v]), times = spread(rstd), moved = spread(-rest[v] * rstd);
        write_voxel<kSilu>(channels, out + v * channels, [&](int64_t c) SF_LAMBDA_INLINE {
            const Lanes unit = (load_lanes(h + c) - first) * times + moved;
            return unit * load_lanes(slope + c) + load_lanes(offset + c);
        });
    }
}

template <bool kSilu, typename T>
SF_INLINE void group_as(const float* tile, int64_t voxels, const Fold& fold, T* out) {
    const int64_t channels = fold.channels, row = padded(channels);
    const float *centre = fold.centre.data(), *slope = fold.slope.data(), *offset = fold.offset.data();
    for (int64_t v = 0; v < voxels; ++v) {
        const float* h = tile + v * row;
        write_voxel<kSilu>(channels, out + v * channels, [&](int64_t c) SF_LAMBDA_INLINE {
            return (load_lanes(h + c) - load_lanes(centre + c)) * load_lanes(slope + c) + load_lanes(offset + c);
        });
    }
}

}  // namespace

SF_VECTOR_CLONES
void load_voxels(const View& view, int64_t start, int64_t step, int64_t voxels, int64_t channels, float* tile,
                 int64_t row) {
    switch (view.dtype) {
        case DType::kBFloat16: load_as<BFloat16>(view, start, step, voxels, channels, tile, row); return;
        case DType::kFloat16: load_as<Float16>(view, start, step, voxels, channels, tile, row); return;
        default: load_as<float>(view, start, step, voxels, channels, tile, row); return;
    }
}

SF_VECTOR_CLONES
void block_moments(const float* tile, int64_t voxels, int64_t channels, float* first, float* rest,
                   float* squares) {
    const Lanes share = spread(1.0f / static_cast<float>(voxels));
    for (int64_t c = 0; c < channels; c += kLanes) {
        Lanes mean = spread(0.0f), rests = mean, powers = mean;
        for (int64_t v = 0; v < voxels; ++v) mean = mean + load_lanes(tile + v * kBlock + c);
        mean = mean * share;
        for (int64_t v = 0; v < voxels; ++v) {
            const Lanes apart = load_lanes(tile + v * kBlock + c) - mean;
            rests = rests + apart;
            powers = powers + apart * apart;
        }
        store_lanes(first + c, mean);
        store_lanes(rest + c, rests * share);
        store_lanes(squares + c, powers - rests * rests * share);
    }
}

SF_VECTOR_CLONES
void finish_layer(float* tile, int64_t voxels, const Fold& fold, float eps, bool silu, DType dtype, void* out) {
    switch (dtype) {
        case DType::kBFloat16:
            silu ? layer_as<true>(tile, voxels, fold, eps, static_cast<BFloat16*>(out))
                 : layer_as<false>(tile, voxels, fold, eps, static_cast<BFloat16*>(out));
            return;
        case DType::kFloat16:
            silu ? layer_as<true>(tile, voxels, fold, eps, static_cast<Float16*>(out))
                 : layer_as<false>(tile, voxels, fold, eps, static_cast<Float16*>(out));
            return;
        default:
            silu ? layer_as<true>(tile, voxels, fold, eps, static_cast<float*>(out))
                 : layer_as<false>(tile, voxels, fold, eps, static_cast<float*>(out));
            return;
    }
}

SF_VECTOR_CLONES
void finish_group(const float* tile, int64_t voxels, const Fold& fold, bool silu, DType dtype, void* out) {
    switch (dtype) {
        case DType::kBFloat16:
            silu ? group_as<true>(tile, voxels, fold, static_cast<BFloat16*>(out))
                 : group_as<false>(tile, voxels, fold, static_cast<BFloat16*>(out));
            return;
        case DType::kFloat16:
            silu ? group_as<true>(tile, voxels, fold, static_cast<Float16*>(out))
                 : group_as<false>(tile, voxels, fold, static_cast<Float16*>(out));
            return;
        default:
            silu ? group_as<true>(tile, voxels, fold, static_cast<float*>(out))
                 : group_as<false>(tile, voxels, fold, static_cast<float*>(out));
            return;
    }
}

}  // namespace scorefusion
