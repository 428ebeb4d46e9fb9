// Floats side by side, for loops that the compiler does not turn into vector instructions by itself: running sums,
// clamps that keep NaN, and products of rows with panels of a weight. loops.h includes it for each instruction set.

// Converts a vector's elements, side by side.
template <typename T>
SF_INLINE void narrow_each(const float* from, T* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = from_float<T>(from[i]);
}

#if defined(__GNUC__)

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t LaneBits __attribute__((vector_size(4 * kLanes)));

SF_INLINE Lanes spread(float value) { return value - Lanes{}; }  // 0 + value would be an addition, for the sake of -0

// min(high, z) and max(low, z), NaN where z is.
#if defined(SF_WIDE)
SF_INLINE Lanes clamp_lanes(Lanes z, float low, float high) {
    return (Lanes)_mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), (__m512)z));
}
#else
SF_INLINE Lanes clamp_lanes(Lanes z, float low, float high) {
    const Lanes under = spread(high) < z ? spread(high) : z;
    return spread(low) > under ? spread(low) : under;
}
#endif

// 2^(n - 1) for n in [-125, 128] (0 for -126), given 1.5 · 2^23 + n, whose low bits are n.
SF_INLINE Lanes half_power(Lanes biased) { return (Lanes)(((LaneBits)biased << 23) + 0x3F000000u); }

SF_INLINE void narrow_lanes(Lanes value, BFloat16* to) {
#if defined(SF_NARROW)
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
#else
    typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
    const LaneBits bits = (LaneBits)value;
    const LaneBits rounded = (bits + (0x7FFFu + ((bits >> 16) & 1u))) >> 16;
    const LaneBits nan = LaneBits{} + 0x7FC0u;
    const Halves halves = __builtin_convertvector(value == value ? rounded : nan, Halves);
#endif
    std::memcpy(to, &halves, sizeof halves);
}

#if defined(__clang__)
#define SF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, EightBits{__VA_ARGS__})
#endif

typedef float Eight __attribute__((vector_size(32)));
typedef uint32_t EightBits __attribute__((vector_size(32)));

SF_INLINE Eight eight(Lanes value) {
#if defined(SF_WIDE)
    return (Eight)_mm512_castps512_ps256((__m512)value) + (Eight)_mm512_extractf32x8_ps((__m512)value, 1);
#else
    return value;
#endif
}

// to[i] is `share` times the sum of the lanes of rows[i]: rounds of adding halves, neighbours, quarters and halves.
SF_INLINE void store_sums(const Lanes* rows, float share, float* to) {
    Eight pairs[4], quads[2];
    for (int i = 0; i < 4; ++i) {
        const Eight a = eight(rows[2 * i]), b = eight(rows[2 * i + 1]);
        pairs[i] = SF_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + SF_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 2; ++i) {
        const Eight a = pairs[2 * i], b = pairs[2 * i + 1];
        quads[i] = SF_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SF_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    const Eight sums = SF_SHUFFLE(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11) +
                       SF_SHUFFLE(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15);
    const Eight shares = sums * share;
    std::memcpy(to, &shares, sizeof shares);
}

#else

struct Lanes {
    float lane[kLanes];
    float operator[](int i) const { return lane[i]; }
};

SF_INLINE Lanes spread(float value) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = value;
    return out;
}

#define SF_LANEWISE(op)                                                     \
    SF_INLINE Lanes operator op(Lanes a, Lanes b) {                         \
        for (int i = 0; i < kLanes; ++i) a.lane[i] = a.lane[i] op b.lane[i]; \
        return a;                                                           \
    }
SF_LANEWISE(+) SF_LANEWISE(-) SF_LANEWISE(*) SF_LANEWISE(/)
#undef SF_LANEWISE

SF_INLINE Lanes operator*(Lanes a, float b) { return a * spread(b); }

SF_INLINE Lanes clamp_lanes(Lanes z, float low, float high) {
    for (float& x : z.lane) x = high < x ? high : x, x = low > x ? low : x;
    return z;
}

SF_INLINE Lanes half_power(Lanes biased) {
    uint32_t bits[kLanes];
    std::memcpy(bits, &biased, sizeof bits);
    for (int i = 0; i < kLanes; ++i) bits[i] = (bits[i] << 23) + 0x3F000000u;
    std::memcpy(&biased, bits, sizeof bits);
    return biased;
}

SF_INLINE void store_sums(const Lanes* rows, float share, float* to) {
    for (int i = 0; i < 8; ++i) {
        float sum = 0.0f;
        for (int j = 0; j < kLanes; ++j) sum += rows[i].lane[j];
        to[i] = sum * share;
    }
}

SF_INLINE void narrow_lanes(Lanes value, BFloat16* to) { narrow_each(value.lane, to); }

#endif

SF_INLINE Lanes load_lanes(const float* from) {
    Lanes out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

SF_INLINE void store_lanes(float* to, Lanes value) { std::memcpy(to, &value, sizeof value); }

SF_INLINE void narrow_lanes(Lanes value, float* to) { store_lanes(to, value); }

SF_INLINE void narrow_lanes(Lanes value, Float16* to) {
#if defined(SF_WIDE)
    const __m256i halves = _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &halves, sizeof halves);
#else
    float values[kLanes];
    store_lanes(values, value);
    narrow_each(values, to);
#endif
}

SF_INLINE Lanes widen_lanes(const float* from) { return load_lanes(from); }

template <typename T>
SF_INLINE Lanes widen_lanes(const T* from) {
    float values[kLanes];
    for (int i = 0; i < kLanes; ++i) values[i] = to_float(from[i]);
    return load_lanes(values);
}

#if defined(SF_WIDE)
SF_INLINE Lanes widen_lanes(const BFloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}

SF_INLINE Lanes widen_lanes(const Float16* from) {
    return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// 1 + 2^n 2^f, by a polynomial in f with its highest power first.
template <int N>
SF_INLINE __m512 one_and_power(__m512 n, __m512 f, const float (&coefficients)[N]) {
    __m512 p = _mm512_set1_ps(coefficients[0]);
    SF_UNROLL for (int i = 1; i < N; ++i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(coefficients[i]));
    return _mm512_add_ps(_mm512_scalef_ps(p, n), _mm512_set1_ps(1.0f));
}

// 1 / (1 + exp(-y)). exp(-y) = 2^n 2^f, n whole and |f| <= 1/2; the polynomial is minimax for the relative error,
// 2e-7. Within the bounds nothing is lost: 1 + exp(-y) is 1 for y above 17 and infinite below -88.73, where the
// result is 0. NaN stays NaN. One step of Newton's doubles the 14 bits of a reciprocal.
SF_INLINE Lanes sigmoid(Lanes y) {
    const __m512 z = (__m512)clamp_lanes(y, -89.0f, 87.0f), one = _mm512_set1_ps(1.0f);
    const __m512 turn = _mm512_set1_ps(-1.44269502e+00f), rest = _mm512_set1_ps(-1.92596303e-08f);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(z, turn), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_fmadd_ps(z, rest, _mm512_fmsub_ps(z, turn, n));
    const __m512 d = one_and_power(
        n, f, {1.326472720e-03f, 9.671512820e-03f, 5.550733745e-02f, 2.402224208e-01f, 6.931469776e-01f, 1.0f});
    const __m512 r = _mm512_rcp14_ps(d);
    const __mmask16 finite = _mm512_cmp_ps_mask(d, _mm512_set1_ps(INFINITY), _CMP_NEQ_UQ);
    return (Lanes)_mm512_mask_fmadd_ps(r, finite, _mm512_fnmadd_ps(d, r, one), r);
}

// To 7e-5 of itself, a thirtieth of what bfloat16 rounds off, in half the time: exp(-y) = 2^n 2^f, 0 <= f < 1.
SF_INLINE Lanes brief_sigmoid(Lanes y) {
    const __m512 n = _mm512_mul_ps((__m512)y, _mm512_set1_ps(-1.44269502e+00f));
    const __m512 f = _mm512_reduce_ps(n, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return (Lanes)_mm512_rcp14_ps(one_and_power(
        n, f, {1.353444438e-02f, 5.201094970e-02f, 2.414430380e-01f, 6.930037737e-01f, 1.000002623e+00f}));
}

// To 2e-7 of 1 rather than of itself: as brief_sigmoid, with one more power and a step of Newton's.
SF_INLINE Lanes share_of_one(Lanes y) {
    const __m512 n = _mm512_mul_ps((__m512)clamp_lanes(y, -87.0f, 87.0f), _mm512_set1_ps(-1.44269502e+00f));
    const __m512 f = _mm512_reduce_ps(n, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __m512 d = one_and_power(
        n, f, {1.883060439e-03f, 8.975590579e-3f, 5.583896860e-2f, 0.2401485890f, 0.6931537390f, 0.9999999404f});
    const __m512 r = _mm512_rcp14_ps(d);
    return (Lanes)_mm512_fmadd_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(1.0f)), r);
}

// y / (1 + exp(-y)): -0 where that is 0, as PyTorch's.
SF_INLINE Lanes silu(Lanes y) { return y * sigmoid(y); }
#else
// 1 + exp(-y). -y = n ln(2) - r, n whole and |r| <= ln(2) / 2, so exp(-y) = 2^n exp(-r): the polynomial is
// Cephes' expf, doubled because 2^128 has no float but 2^127 has. Within the bounds nothing is lost: it is 1 for y
// above 17 and infinite below -88.73. NaN stays NaN.
SF_INLINE Lanes one_and_exp(Lanes y) {
    const Lanes z = clamp_lanes(y, -89.0f, 87.0f);
    // Adding 1.5 · 2^23 rounds to a whole number and leaves it in the low bits.
    const Lanes magic = spread(12582912.0f);
    const Lanes biased = z * spread(-1.44269504088896341f) + magic;
    const Lanes n = biased - magic;
    const Lanes r = (z + n * spread(0.693359375f)) - n * spread(2.12194440e-4f);
    Lanes p = r * spread(-2.0f * 1.9875691500e-4f) + spread(2.0f * 1.3981999507e-3f);
    p = p * r - spread(2.0f * 8.3334519073e-3f);
    p = p * r + spread(2.0f * 4.1665795894e-2f);
    p = p * r - spread(2.0f * 1.6666665459e-1f);
    p = p * r + spread(2.0f * 5.0000001201e-1f);
    p = p * (r * r) + (spread(2.0f) - (r + r));
    return p * half_power(biased) + spread(1.0f);
}

SF_INLINE Lanes sigmoid(Lanes y) { return spread(1.0f) / one_and_exp(y); }

SF_INLINE Lanes brief_sigmoid(Lanes y) { return sigmoid(y); }

SF_INLINE Lanes share_of_one(Lanes y) { return sigmoid(y); }

// y / (1 + exp(-y)): -0 where that is 0, as PyTorch's.
SF_INLINE Lanes silu(Lanes y) { return y / one_and_exp(y); }
#endif

// ---- products

// Calls body(V, first) for each panel of `vectors` vectors of outputs: of V (a constant's type, at most kMost) vectors,
// as equal as can be, from output `first` on.
template <typename Body>
SF_INLINE void each_panel(int64_t vectors, const Body& body) {
    const int64_t count = (vectors + kMost - 1) / kMost;
    for (int64_t panel = 0; panel < count; ++panel) {
        const int64_t begin = vectors * panel / count, first = begin * kLanes;
        switch (vectors * (panel + 1) / count - begin) {
            case 1: body(std::integral_constant<int, 1>(), first); break;
            case 2: body(std::integral_constant<int, 2>(), first); break;
            case 3: body(std::integral_constant<int, 3>(), first); break;
            default: body(std::integral_constant<int, 4>(), first); break;
        }
    }
}

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

// Short is what a step takes of bfloat16 numbers: pairs where the processor multiplies them.
#if defined(SF_NARROW)
constexpr bool kPairs = true;
using Short = Pair;

SF_INLINE void multiply_add(Lanes& sum, Pair x, const Pair* weights) {
    sum = (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(x.bits)),
                                  (__m512bh)_mm512_loadu_si512(weights));
}
#else
constexpr bool kPairs = false;
using Short = Single;
#endif

// sums [R, V kLanes], whose rows are sum_row apart, = or (kAdd) += a [R, depth] · panel [depth, V kLanes], held in
// registers. a's element (r, k) lies at r * row + k * kStep; a row that is a constant's type takes fewer registers.
template <int R, int V, bool kAdd = false, int kStep = 1, typename Number, typename Row>
void multiply(const Number* __restrict a, Row row, const Number* __restrict panel, int64_t depth,
              float* __restrict sums, int64_t sum_row = V * kLanes) {
    Lanes sum[R][V];
    SF_UNROLL for (int r = 0; r < R; ++r) {
        SF_UNROLL for (int v = 0; v < V; ++v) {
            sum[r][v] = kAdd ? load_lanes(sums + r * sum_row + v * kLanes) : spread(0.0f);
        }
    }
    for (int64_t k = 0; k < depth; ++k, panel += V * kLanes) {
        SF_UNROLL for (int r = 0; r < R; ++r) {
            const Number x = a[r * row + k * kStep];
            SF_UNROLL for (int v = 0; v < V; ++v) multiply_add(sum[r][v], x, panel + v * kLanes);
        }
    }
    SF_UNROLL for (int r = 0; r < R; ++r) {
        SF_UNROLL for (int v = 0; v < V; ++v) store_lanes(sums + r * sum_row + v * kLanes, sum[r][v]);
    }
}
