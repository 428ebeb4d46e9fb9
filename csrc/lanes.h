// Eight floats at a time, for loops that the compiler does not turn into vector instructions by itself:
// running sums, and clamps that keep NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "view.h"

namespace scorefusion {

constexpr int kLanes = 8;  // of an AVX2 register; SSE and NEON take two

// Rounds eight floats to an element type, side by side.
template <typename T>
SF_INLINE void narrow_each(const float* from, T* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = from_float<T>(from[i]);
}

#if defined(__GNUC__)

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t LaneBits __attribute__((vector_size(4 * kLanes)));

SF_INLINE Lanes spread(float value) { return Lanes{} + value; }

// min(high, z) and max(low, z), NaN where z is.
SF_INLINE Lanes clamp_lanes(Lanes z, float low, float high) {
    const Lanes under = spread(high) < z ? spread(high) : z;
    return spread(low) > under ? spread(low) : under;
}

// 2^(n - 1) for n in [-125, 128] (0 for -126), given 1.5 · 2^23 + n, whose low bits are n.
SF_INLINE Lanes half_power(Lanes biased) { return (Lanes)(((LaneBits)biased << 23) + 0x3F000000u); }

SF_INLINE void narrow_lanes(Lanes value, BFloat16* to) {
    typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
    const LaneBits bits = (LaneBits)value;
    const LaneBits rounded = (bits + (0x7FFFu + ((bits >> 16) & 1u))) >> 16;
    const LaneBits nan = LaneBits{} + 0x7FC0u;
    const Halves halves = __builtin_convertvector(value == value ? rounded : nan, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

#if defined(__clang__)
#define SF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, LaneBits{__VA_ARGS__})
#endif

// Lane i is the sum of the lanes of rows[i]: three rounds of adding neighbours, quarters and halves.
SF_INLINE Lanes sums_of(const Lanes* rows) {
    Lanes pairs[4], quads[2];
    for (int i = 0; i < 4; ++i) {
        const Lanes a = rows[2 * i], b = rows[2 * i + 1];
        pairs[i] = SF_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + SF_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 2; ++i) {
        const Lanes a = pairs[2 * i], b = pairs[2 * i + 1];
        quads[i] = SF_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SF_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return SF_SHUFFLE(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           SF_SHUFFLE(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

#else

struct Lanes {
    float lane[kLanes];
    float operator[](int i) const { return lane[i]; }
};

template <typename Combine>
SF_INLINE Lanes each(Lanes a, Lanes b, Combine combine) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] = combine(a.lane[i], b.lane[i]);
    return a;
}

SF_INLINE Lanes spread(float value) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = value;
    return out;
}

SF_INLINE Lanes operator+(Lanes a, Lanes b) { return each(a, b, [](float x, float y) { return x + y; }); }
SF_INLINE Lanes operator-(Lanes a, Lanes b) { return each(a, b, [](float x, float y) { return x - y; }); }
SF_INLINE Lanes operator*(Lanes a, Lanes b) { return each(a, b, [](float x, float y) { return x * y; }); }
SF_INLINE Lanes operator/(Lanes a, Lanes b) { return each(a, b, [](float x, float y) { return x / y; }); }

SF_INLINE Lanes clamp_lanes(Lanes z, float low, float high) {
    const Lanes under = each(z, spread(high), [](float x, float y) { return y < x ? y : x; });
    return each(under, spread(low), [](float x, float y) { return y > x ? y : x; });
}

SF_INLINE Lanes half_power(Lanes biased) {
    uint32_t bits[kLanes];
    std::memcpy(bits, &biased, sizeof bits);
    for (int i = 0; i < kLanes; ++i) bits[i] = (bits[i] << 23) + 0x3F000000u;
    std::memcpy(&biased, bits, sizeof bits);
    return biased;
}

SF_INLINE Lanes sums_of(const Lanes* rows) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) {
        out.lane[i] = 0.0f;
        for (int j = 0; j < kLanes; ++j) out.lane[i] += rows[i].lane[j];
    }
    return out;
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
    float values[kLanes];
    store_lanes(values, value);
    narrow_each(values, to);
}

// y / (1 + exp(-y)). -y = n ln(2) - r, n whole and |r| <= ln(2) / 2, so exp(-y) = 2^n exp(-r): the polynomial is
// Cephes' expf, doubled because 2^128 has no float but 2^127 has. Within the bounds nothing is lost: 1 + exp(-y)
// is 1 for y above 17 and infinite below -88.73, where the result is -0, as PyTorch's. NaN stays NaN.
SF_INLINE Lanes silu(Lanes y) {
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
    return y / (p * half_power(biased) + spread(1.0f));
}

}  // namespace scorefusion
