// The vector loops of norm_act's gradient, over two tiles in the first-level cache: included after norm_act_loops.h,
// in the same namespace; no include guard, no #include.
//
// With unit = (h - mean) * rstd, z = unit * slope + offset and the result act(z), of which the gradient is given:
//   dz = gradient * act'(z)
//   dh = rstd * (dz * slope - mean(dz * slope) - unit * mean(unit * dz * slope))    means over what was normalised

// 1 / (1 + exp(-z)) to 2e-7 of 1 rather than of itself, as brief_sigmoid() with one more power and a step of Newton's.
#if defined(SF_WIDE)
SF_INLINE Lanes share_of_one(Lanes unbounded) {
    const __m512 one = _mm512_set1_ps(1.0f), z = (__m512)clamp_lanes(unbounded, -87.0f, 87.0f);
    const __m512 turns = _mm512_mul_ps(z, _mm512_set1_ps(-1.44269502e+00f));
    const __m512 f = _mm512_reduce_ps(turns, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(1.883060439e-03f);
    for (const float next : {8.975590579e-3f, 5.583896860e-2f, 0.2401485890f, 0.6931537390f, 0.9999999404f}) {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(next));
    }
    const __m512 d = _mm512_add_ps(_mm512_scalef_ps(p, turns), one), r = _mm512_rcp14_ps(d);
    return (Lanes)_mm512_fmadd_ps(r, _mm512_fnmadd_ps(d, r, one), r);
}
#else
SF_INLINE Lanes share_of_one(Lanes z) { return sigmoid(z); }
#endif

// The gradient times the activation's slope: SiLU's is s (1 + z (1 - s)).
template <Act kAct>
SF_INLINE Lanes before_act(Lanes gradient, Lanes z) {
    if (kAct == Act::kNone) return gradient;
    const Lanes one = spread(1.0f), s = kAct == Act::kBriefSilu ? brief_sigmoid(z) : share_of_one(z);
    return gradient * (s * (one + z * (one - s)));
}

// Leaves unit in `tile`; adds three rows to `sums`: dz, dz * unit and dh, over the voxels.
template <Act kAct>
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
            float *h = tile + v * row, *g = gradient + v * row;
            Lanes sum = none, product = none;
            for (int64_t c = 0; c < channels; c += kLanes) {
                const Lanes unit = (load_lanes(h + c) - centre) * times + moved, weight = load_lanes(slope + c);
                const Lanes dz = before_act<kAct>(load_lanes(g + c), unit * weight + load_lanes(offset + c));
                store_lanes(h + c, unit);
                store_lanes(g + c, dz);
                const Lanes weighted = dz * weight;
                sum = sum + weighted;
                product = product + weighted * unit;
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
            const Lanes dz = load_lanes(g), unit = load_lanes(tile + v * row + c);
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
template <Act kAct>
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
            const Lanes dz = before_act<kAct>(load_lanes(gradient + v * row + c), unit * slope + offset);
            plain = plain + dz;
            leaning = leaning + dz * unit;
        }
        store_lanes(sums + c, load_lanes(sums + c) + plain);
        store_lanes(sums + row + c, load_lanes(sums + row + c) + leaning);
    }
}

template <Act kAct>
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
            const Lanes dz = before_act<kAct>(load_lanes(g), unit * slope + offset);
            store_lanes(g, (dz * slope - level - unit * along) * rstd);
        }
    }
}

template <typename T>
SF_INLINE void store_as(const float* tile, int64_t row, int64_t voxels, int64_t channels, T* __restrict out) {
    const int64_t whole = channels / kLanes * kLanes;
    for (int64_t v = 0; v < voxels; ++v) {
        const float* from = tile + v * row;
        T* to = out + v * channels;
        for (int64_t c = 0; c < whole; c += kLanes) narrow_lanes(load_lanes(from + c), to + c);
        for (int64_t c = whole; c < channels; ++c) to[c] = from_float<T>(from[c]);
    }
}

inline void layer_gradient(float* tile, float* gradient, int64_t voxels, const Fold& fold, float eps, Act act,
                           float* sums) {
    switch (act) {
        case Act::kSilu: layer_gradient_as<Act::kSilu>(tile, gradient, voxels, fold, eps, sums); return;
        case Act::kBriefSilu: layer_gradient_as<Act::kBriefSilu>(tile, gradient, voxels, fold, eps, sums); return;
        default: layer_gradient_as<Act::kNone>(tile, gradient, voxels, fold, eps, sums); return;
    }
}

inline void group_sums(const float* tile, const float* gradient, int64_t voxels, const GroupFold& fold, Act act,
                       float* sums) {
    switch (act) {
        case Act::kSilu: group_sums_as<Act::kSilu>(tile, gradient, voxels, fold, sums); return;
        case Act::kBriefSilu: group_sums_as<Act::kBriefSilu>(tile, gradient, voxels, fold, sums); return;
        default: group_sums_as<Act::kNone>(tile, gradient, voxels, fold, sums); return;
    }
}

inline void group_gradient(const float* tile, float* gradient, int64_t voxels, const GroupFold& fold, Act act) {
    switch (act) {
        case Act::kSilu: group_gradient_as<Act::kSilu>(tile, gradient, voxels, fold); return;
        case Act::kBriefSilu: group_gradient_as<Act::kBriefSilu>(tile, gradient, voxels, fold); return;
        default: group_gradient_as<Act::kNone>(tile, gradient, voxels, fold); return;
    }
}

inline void store_voxels(const float* tile, int64_t row, int64_t voxels, int64_t channels, DType dtype, void* out) {
    switch (dtype) {
        case DType::kBFloat16: store_as(tile, row, voxels, channels, static_cast<BFloat16*>(out)); return;
        case DType::kFloat16: store_as(tile, row, voxels, channels, static_cast<Float16*>(out)); return;
        default: store_as(tile, row, voxels, channels, static_cast<float*>(out)); return;
    }
}
