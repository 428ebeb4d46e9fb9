// The vector loops of norm_act and its gradient, over tiles in the first-level cache, for one instruction set; see
// common/loops.h.

constexpr int kSquare = 8;  // voxels, and channels, that are turned, or summed, together

// Floats of a row that the loops pass over: whole vectors.
SF_INLINE int64_t filled(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

SF_INLINE void prefetch(const void* place) {
#if defined(__GNUC__)
    __builtin_prefetch(place);
#else
    (void)place;
#endif
}

template <typename T>
SF_INLINE void load_as(const View& view, int64_t start, int64_t step, int64_t voxels, int64_t channels,
                       float* __restrict tile, int64_t row) {
    const T* __restrict source = static_cast<const T*>(view.data) + start;
    const int64_t across = view.stride[1];
    if (across == 1) {
        for (int64_t v = 0; v < voxels; ++v) {
            int64_t c = 0;
            for (; c + kLanes <= channels; c += kLanes) {
                const T* from = source + v * step + c;
                prefetch(from + voxels * step);  // the next tile's: it arrives while this one is computed
                store_lanes(tile + v * row + c, widen_lanes(from));
            }
            for (; c < channels; ++c) tile[v * row + c] = to_float(source[v * step + c]);
        }
        return;
    }
    // Eight voxels and eight channels at a time through a square that the compiler turns in registers.
    int64_t c = 0;
    for (; step == 1 && c + kSquare <= channels; c += kSquare) {
        int64_t v = 0;
        for (; v + kSquare <= voxels; v += kSquare) {
            float square[kSquare][kSquare];
            for (int i = 0; i < kSquare; ++i) {
                for (int j = 0; j < kSquare; ++j) square[i][j] = to_float(source[(c + i) * across + v + j]);
            }
            for (int j = 0; j < kSquare; ++j) {
                for (int i = 0; i < kSquare; ++i) tile[(v + j) * row + c + i] = square[i][j];
            }
        }
        for (; v < voxels; ++v) {
            for (int i = 0; i < kSquare; ++i) tile[v * row + c + i] = to_float(source[(c + i) * across + v]);
        }
    }
    for (; c < channels; ++c) {
        for (int64_t v = 0; v < voxels; ++v) tile[v * row + c] = to_float(source[c * across + v * step]);
    }
}

// Of `voxels` <= kSquare rows: mean, what rounding left of it, and variance, by two passes. Eight voxels at once,
// because summing across the lanes of one takes longer than summing its channels.
SF_INLINE void moments(const float* h, int64_t voxels, int64_t count, Lanes last, float* mean, float* rest,
                       float* variance) {
    const int64_t row = padded(count), whole = filled(count) - kLanes;
    const Lanes none = spread(0.0f);
    const float share = 1.0f / static_cast<float>(count);
    Lanes sums[kSquare], squares[kSquare];
    for (int v = 0; v < kSquare; ++v) sums[v] = squares[v] = none;
    for (int64_t v = 0; v < voxels; ++v) {
        Lanes sum = load_lanes(h + v * row + whole);
        for (int64_t c = 0; c < whole; c += kLanes) sum = sum + load_lanes(h + v * row + c);
        sums[v] = sum;
    }
    store_sums(sums, share, mean);
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
    store_sums(sums, share, rest);
    store_sums(squares, share, variance);
    for (int v = 0; v < kSquare; ++v) variance[v] -= rest[v] * rest[v];
}

// Ones, and zeros beyond the channels of the last vector of a row.
SF_INLINE Lanes last_lanes(int64_t channels) {
    float ones[kLanes];
    for (int i = 0; i < kLanes; ++i) ones[i] = filled(channels) - kLanes + i < channels ? 1.0f : 0.0f;
    return load_lanes(ones);
}

// SiLU, as exactly as T can hold it.
template <typename T>
SF_INLINE Lanes silu_for(Lanes y) {
    return std::is_same_v<T, BFloat16> ? y * brief_sigmoid(y) : silu(y);
}

// Writes y(c) of every vector of a voxel; the last may be partial. What is stored is never read back here: a wide
// load of two narrower stores would wait for both to reach the cache.
template <bool kSilu, typename T, typename Value>
SF_INLINE void write_voxel(int64_t channels, T* __restrict out, const Value& y) {
    const int64_t whole = channels / kLanes * kLanes;
    for (int64_t c = 0; c < whole; c += kLanes) narrow_lanes(kSilu ? silu_for<T>(y(c)) : y(c), out + c);
    if (whole == channels) return;
    T rest[kLanes];
    narrow_lanes(kSilu ? silu_for<T>(y(whole)) : y(whole), rest);
    for (int64_t c = whole; c < channels; ++c) out[c] = rest[c - whole];
}

// Subtracts the fold's centre and measures each voxel of a tile: all of them before any voxel's activation, so that the
// long chains of several run side by side. mean, rest and variance have room for whole squares of voxels.
SF_INLINE void layer_moments(float* tile, int64_t voxels, const Fold& fold, float* mean, float* rest,
                             float* variance) {
    const int64_t channels = fold.channels, row = padded(channels);
    const float* centre = fold.centre.data();
    const Lanes last = last_lanes(channels);
    for (int64_t v = 0; fold.shifted && v < voxels; ++v) {
        float* h = tile + v * row;
        for (int64_t c = 0; c < row; c += kLanes) store_lanes(h + c, load_lanes(h + c) - load_lanes(centre + c));
    }
    for (int64_t v = 0; v < voxels; v += kSquare) {
        moments(tile + v * row, std::min<int64_t>(kSquare, voxels - v), channels, last, mean + v, rest + v,
                variance + v);
    }
}

template <bool kSilu, typename T>
SF_INLINE void layer_as(float* tile, int64_t voxels, const Fold& fold, float eps, T* out) {
    const int64_t channels = fold.channels, row = padded(channels);
    const float *slope = fold.slope.data(), *offset = fold.offset.data();
    float mean[kTile / kRow], rest[kTile / kRow], variance[kTile / kRow];
    layer_moments(tile, voxels, fold, mean, rest, variance);
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

inline void load_voxels(const View& view, int64_t start, int64_t step, int64_t voxels, int64_t channels, float* tile,
                        int64_t row) {
    dispatch(view.dtype, [&](auto* as) {
        load_as<std::remove_pointer_t<decltype(as)>>(view, start, step, voxels, channels, tile, row);
    });
}

inline void block_moments(const float* tile, int64_t voxels, int64_t channels, float* first, float* rest,
                          float* squares) {
    const Lanes none = spread(0.0f), share = spread(1.0f / static_cast<float>(voxels));
    for (int64_t c = 0; c < channels; c += kLanes) {
        const float* from = tile + c;
        Lanes means[4] = {none, none, none, none}, rests[2] = {none, none}, powers[2] = {none, none};
        for (int64_t v = 0; v < voxels; ++v) means[v % 4] = means[v % 4] + load_lanes(from + v * kBlock);
        const Lanes mean = ((means[0] + means[1]) + (means[2] + means[3])) * share;
        for (int64_t v = 0; v < voxels; ++v) {
            const Lanes apart = load_lanes(from + v * kBlock) - mean;
            rests[v % 2] = rests[v % 2] + apart;
            powers[v % 2] = powers[v % 2] + apart * apart;
        }
        const Lanes left = rests[0] + rests[1];
        store_lanes(first + c, mean);
        store_lanes(rest + c, left * share);
        store_lanes(squares + c, (powers[0] + powers[1]) - left * left * share);
    }
}

inline void finish_layer(float* tile, int64_t voxels, const Fold& fold, float eps, bool silu, DType dtype, void* out) {
    dispatch(dtype, [&](auto* as) {
        auto* const to = static_cast<decltype(as)>(out);
        silu ? layer_as<true>(tile, voxels, fold, eps, to) : layer_as<false>(tile, voxels, fold, eps, to);
    });
}

inline void finish_group(const float* tile, int64_t voxels, const Fold& fold, bool silu, DType dtype, void* out) {
    dispatch(dtype, [&](auto* as) {
        auto* const to = static_cast<decltype(as)>(out);
        silu ? group_as<true>(tile, voxels, fold, to) : group_as<false>(tile, voxels, fold, to);
    });
}

// ---- the gradient
//
// With unit = (h - mean) * rstd, z = unit * slope + offset and the result act(z), of which the gradient is given:
//   dz = gradient * act'(z)
//   dh = rstd * (dz * slope - mean(dz * slope) - unit * mean(unit * dz * slope))    means over what was normalised

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
SF_INLINE void group_sums_as(const float* tile, const float* gradient, int64_t voxels, const Fold& fold,
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
SF_INLINE void group_gradient_as(const float* tile, float* gradient, int64_t voxels, const Fold& fold) {
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

// Calls body with the activation as a constant's type.
template <typename Body>
void with_act(Act act, const Body& body) {
    switch (act) {
        case Act::kSilu: body(std::integral_constant<Act, Act::kSilu>()); return;
        case Act::kBriefSilu: body(std::integral_constant<Act, Act::kBriefSilu>()); return;
        default: body(std::integral_constant<Act, Act::kNone>()); return;
    }
}

inline void layer_gradient(float* tile, float* gradient, int64_t voxels, const Fold& fold, float eps, Act act,
                           float* sums) {
    with_act(act, [&](auto is) { layer_gradient_as<is()>(tile, gradient, voxels, fold, eps, sums); });
}

inline void group_sums(const float* tile, const float* gradient, int64_t voxels, const Fold& fold, Act act,
                       float* sums) {
    with_act(act, [&](auto is) { group_sums_as<is()>(tile, gradient, voxels, fold, sums); });
}

inline void group_gradient(const float* tile, float* gradient, int64_t voxels, const Fold& fold, Act act) {
    with_act(act, [&](auto is) { group_gradient_as<is()>(tile, gradient, voxels, fold); });
}

inline void store_voxels(const float* tile, int64_t row, int64_t voxels, int64_t channels, DType dtype, void* out) {
    dispatch(dtype, [&](auto* as) { store_as(tile, row, voxels, channels, static_cast<decltype(as)>(out)); });
}

constexpr Loops kLoops{load_voxels,    block_moments, finish_layer,   finish_group,
                       layer_gradient, group_sums,    group_gradient, store_voxels};
