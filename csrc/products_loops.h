// Products of rows with panels of a weight, for one instruction set: included after lanes.h, in the same namespace,
// which has defined kLanes and kMost (vectors of a panel: 2 where there are 16 registers, 4 where there are 32), and
// after SF_UNROLL; no include guard, no #include.

// Rows that a product takes at a time: sums fill 12 of 16 registers, or 24 of 32.
constexpr int rows_of(int vectors) { return 6 * kMost / vectors; }

#if defined(SF_WIDE)
SF_INLINE __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

SF_INLINE void load_some(const float* from, int64_t count, float* values) {
    _mm512_storeu_ps(values, _mm512_maskz_loadu_ps(first_lanes(count), from));
}
SF_INLINE void load_some(const BFloat16* from, int64_t count, BFloat16* values) {
    const __m256i some = _mm256_maskz_loadu_epi16(first_lanes(count), from);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), some);
}
SF_INLINE void store_some(const float* values, int64_t count, float* to) {
    _mm512_mask_storeu_ps(to, first_lanes(count), _mm512_loadu_ps(values));
}
SF_INLINE void store_some(const BFloat16* values, int64_t count, BFloat16* to) {
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    _mm256_mask_storeu_epi16(to, first_lanes(count), all);
}
#else
template <typename T>
SF_INLINE void load_some(const T* from, int64_t count, T* values) {
    for (int64_t i = 0; i < kLanes; ++i) values[i] = i < count ? from[i] : T{};
}
template <typename T>
SF_INLINE void store_some(const T* values, int64_t count, T* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}
#endif

// The first `count` channels of a vector, and zeros.
template <typename T>
SF_INLINE Lanes widen_some(const T* from, int64_t count) {
    if (count >= kLanes) return widen_lanes(from);
    T values[kLanes];
    load_some(from, count, values);
    return widen_lanes(values);
}

template <typename T>
SF_INLINE void narrow_some(Lanes value, T* to, int64_t count) {
    if (count >= kLanes) return narrow_lanes(value, to);
    T values[kLanes];
    narrow_lanes(value, values);
    store_some(values, count, to);
}

// One step of the product: kLanes sums += x times kLanes weights.
SF_INLINE void multiply_add(Lanes& sum, Single x, const Single* weights) {
    sum = sum + load_lanes(&weights->value) * x.value;
}

#if defined(SF_NARROW)
SF_INLINE void multiply_add(Lanes& sum, Pair x, const Pair* weights) {
    sum = (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(x.bits)),
                                  (__m512bh)_mm512_loadu_si512(weights));
}
#endif

// sums [R, V kLanes] = a [R, depth] · panel [depth, V kLanes], held in registers.
template <int R, int V, typename Number>
void multiply(const Number* __restrict a, int64_t row, const Number* __restrict panel, int64_t depth,
              float* __restrict sums) {
    Lanes sum[R][V];
    SF_UNROLL for (int r = 0; r < R; ++r) {
        SF_UNROLL for (int v = 0; v < V; ++v) sum[r][v] = spread(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k, panel += V * kLanes) {
        SF_UNROLL for (int r = 0; r < R; ++r) {
            const Number x = a[r * row + k];
            SF_UNROLL for (int v = 0; v < V; ++v) multiply_add(sum[r][v], x, panel + v * kLanes);
        }
    }
    SF_UNROLL for (int r = 0; r < R; ++r) {
        SF_UNROLL for (int v = 0; v < V; ++v) store_lanes(sums + (r * V + v) * kLanes, sum[r][v]);
    }
}
