// The vector loops of norm_act's gradient, over two tiles in the first-level cache: included after norm_act_loops.h,
// in the same namespace; no include guard, no #include.
//
// With unit = (h - mean) * rstd, z = unit * slope + offset and the result act(z), of which the gradient is given:
//   dz = gradient * act'(z)
//   dh = rstd * (dz * slope - mean(dz * slope) - unit * mean(unit * dz * slope))    means over what was normalised

template <bool kSilu>
SF_INLINE Lanes before_act(Lanes gradient, Lanes z) {
    if (!kSilu) return gradient;
    const Lanes one = spread(1.0f), s = sigmoid(z);
    return gradient * (s * (one + z * (one - s)));
}

// Adds three rows to `sums`: dz, dz * unit and dh, over the voxels.
template <bool kSilu>
SF_INLINE void layer_gradient_as(float* tile, float* gradient, int64_t voxels, const Fold& fold, float eps,
                                 float* sums) {
    const int64_t channels = fold.channels, row = padded(channels);
    const float *slope = fold.slope.data(), *offset = fold.offset.data();
    const float share = 1.0f / static_cast<float>(channels);
    const Lanes none = spread(0.0f);
    float mean[kTile / kRow], rest[kTile / kRow], rstd[kTile / kRow];
    float level[kTile / kRow], along[kTile / kRow];  // means of dz * slope, and of that times unit
    layer_moments(tile, voxels, fold, mean, rest, rstd);
    for (int64_t v = 0; v < voxels; ++v) {
        rstd[v] = 1.0f / std::sqrt(std::max(rstd[v], 0.0f) + eps);
        rest[v] *= -rstd[v];
    }
    for (int64_t first = 0; first < voxels; first += kSquare) {
        Lanes plain[kSquare], leaning[kSquare];
        for (int i = 0; i < kSquare; ++i) plain[i] = leaning[i] = none;
        for (int64_t v = first; v < std::min(voxels, first + kSquare); ++v) {
            const Lanes centre = spread(mean[v]), times = spread(rstd[v]), moved = spread(rest[v]);
            const float* h = tile + v * row;
            float* g = gradient + v * row;
            Lanes sum = none, product = none;
            for (int64_t c = 0; c < channels; c += kLanes) {
                const Lanes unit = (load_lanes(h + c) - centre) * times + moved, weight = load_lanes(slope + c);
                const Lanes dz = before_act<kSilu>(load_lanes(g + c), unit * weight + load_lanes(offset + c));
                store_lanes(g + c, dz);
                sum = sum + dz * weight;
                product = product + dz * weight * unit;
            }
            plain[v - first] = sum;
            leaning[v - first] = product;
        }
        store_sums(plain, share, level + first);
        store_sums(leaning, share, along + first);
    }
    for (int64_t c = 0; c < channels; c += kLanes) {
        const Lanes weight = load_lanes(slope + c);
        Lanes plain = none, leaning = none, inner = none;
        for (int64_t v = 0; v < voxels; ++v) {
            float* g = gradient + v * row + c;
            const Lanes dz = load_lanes(g);
            const Lanes unit = (load_lanes(tile + v * row + c) - spread(mean[v])) * spread(rstd[v]) + spread(rest[v]);
            const Lanes dh = (dz * weight - spread(level[v]) - unit * spread(along[v])) * spread(rstd[v]);
            store_lanes(g, dh);
            plain = plain + dz;
            leaning = leaning + dz * unit;
            inner = inner + dh;
        }
        store_lanes(sums + c, load_lanes(sums + c) + plain);
        store_lanes(sums + row + c, load_lanes(sums + row + c) + leaning);
        store_lanes(sums + 2 * row + c, load_lanes(sums + 2 * row + c) + inner);
    }
}

// Adds two rows to `sums`: dz and dz * unit, over the voxels.
template <bool kSilu>
SF_INLINE void group_sums_as(const float* tile, const float* gradient, int64_t voxels, const GroupFold& fold,
                             float* sums) {
    const int64_t channels = fold.channels, row = padded(channels);
    for (int64_t c = 0; c < channels; c += kLanes) {
        const Lanes centre = load_lanes(fold.centre.data() + c), rstd = load_lanes(fold.rstd.data() + c);
        const Lanes moved = load_lanes(fold.moved.data() + c);
        const Lanes slope = load_lanes(fold.slope.data() + c), offset = load_lanes(fold.offset.data() + c);
        Lanes plain = spread(0.0f), leaning = spread(0.0f);
        for (int64_t v = 0; v < voxels; ++v) {
            const Lanes unit = (load_lanes(tile + v * row + c) - centre) * rstd + moved;
            const Lanes dz = before_act<kSilu>(load_lanes(gradient + v * row + c), unit * slope + offset);
            plain = plain + dz;
            leaning = leaning + dz * unit;
        }
        store_lanes(sums + c, load_lanes(sums + c) + plain);
        store_lanes(sums + row + c, load_lanes(sums + row + c) + leaning);
    }
}

template <bool kSilu>
SF_INLINE void group_gradient_as(const float* tile, float* gradient, int64_t voxels, const GroupFold& fold) {
    const int64_t channels = fold.channels, row = padded(channels);
    for (int64_t c = 0; c < channels; c += kLanes) {
        const Lanes centre = load_lanes(fold.centre.data() + c), rstd = load_lanes(fold.rstd.data() + c);
        const Lanes moved = load_lanes(fold.moved.data() + c);
        const Lanes slope = load_lanes(fold.slope.data() + c), offset = load_lanes(fold.offset.data() + c);
        const Lanes level = load_lanes(fold.level.data() + c), along = load_lanes(fold.along.data() + c);
        for (int64_t v = 0; v < voxels; ++v) {
            float* g = gradient + v * row + c;
            const Lanes unit = (load_lanes(tile + v * row + c) - centre) * rstd + moved;
            const Lanes dz = before_act<kSilu>(load_lanes(g), unit * slope + offset);
            store_lanes(g, (dz * slope - level - unit * along) * rstd);
        }
    }
}

template <typename T>
SF_INLINE void store_as(const float* tile, int64_t row, int64_t voxels, int64_t channels, T* __restrict out) {
    const int64_t whole = channels / kLanes * kLanes;
    for (int64_t v = 0; v < voxels; ++v) {
        for (int64_t c = 0; c < whole; c += kLanes) narrow_lanes(load_lanes(tile + v * row + c), out + v * channels + c);
        for (int64_t c = whole; c < channels; ++c) out[v * channels + c] = from_float<T>(tile[v * row + c]);
    }
}

inline void layer_gradient(float* tile, float* gradient, int64_t voxels, const Fold& fold, float eps, bool silu,
                           float* sums) {
    silu ? layer_gradient_as<true>(tile, gradient, voxels, fold, eps, sums)
         : layer_gradient_as<false>(tile, gradient, voxels, fold, eps, sums);
}

inline void group_sums(const float* tile, const float* gradient, int64_t voxels, const GroupFold& fold, bool silu,
                       float* sums) {
    silu ? group_sums_as<true>(tile, gradient, voxels, fold, sums)
         : group_sums_as<false>(tile, gradient, voxels, fold, sums);
}

inline void group_gradient(const float* tile, float* gradient, int64_t voxels, const GroupFold& fold, bool silu) {
    silu ? group_gradient_as<true>(tile, gradient, voxels, fold)
         : group_gradient_as<false>(tile, gradient, voxels, fold);
}

inline void store_voxels(const float* tile, int64_t row, int64_t voxels, int64_t channels, DType dtype, void* out) {
    switch (dtype) {
        case DType::kBFloat16: store_as(tile, row, voxels, channels, static_cast<BFloat16*>(out)); return;
        case DType::kFloat16: store_as(tile, row, voxels, channels, static_cast<Float16*>(out)); return;
        default: store_as(tile, row, voxels, channels, static_cast<float*>(out)); return;
    }
}
