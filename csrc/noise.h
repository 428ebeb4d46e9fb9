// Standard normals from a counter: Philox 4x32-10 and Box-Muller, bit for bit scorefusion/ops/reference/noise.py.
//
// Compile without contraction (-ffp-contract=off, nvcc -fmad=false): a fused multiply-add changes the last bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace scorefusion {

// An item's noise: a row of `keys`, as it lies in memory. The box begins at (z, y, x) of the original volume.
struct NoiseKey {
    uint64_t seed;
    int64_t sample, z, y, x;
};
static_assert(sizeof(NoiseKey) == 5 * sizeof(int64_t), "a key is five columns of int64");

struct Words {
    uint32_t w0, w1, w2, w3;
};

SF_INLINE Words philox4x32_10(Words c, uint32_t k0, uint32_t k1) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53u} * c.w0;
        const uint64_t product1 = uint64_t{0xCD9E8D57u} * c.w2;
        c = {static_cast<uint32_t>(product1 >> 32) ^ c.w1 ^ k0, static_cast<uint32_t>(product1),
             static_cast<uint32_t>(product0 >> 32) ^ c.w3 ^ k1, static_cast<uint32_t>(product0)};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

SF_INLINE int32_t float_bits(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

SF_INLINE float bits_float(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounds a 32-bit word to the nearest float. The halves are exact, so there is one rounding, as in a direct
// conversion; but this form has vector instructions everywhere.
SF_INLINE float word_to_float(uint32_t word) {
    return static_cast<float>(static_cast<int32_t>(word >> 16)) * 65536.0f +
           static_cast<float>(static_cast<int32_t>(word & 0xFFFFu));
}

// Natural logarithm of u in [2^-33, 1] (Cephes logf).
SF_INLINE float log_unit(float u) {
    const int32_t bits = float_bits(u);
    const int32_t mantissa = (bits & 0x007FFFFF) | 0x3F000000;  // the bits of a float in [0.5, 1)
    const int32_t low = mantissa < 0x3F3504F3 ? 1 : 0;          // below 0.70710678: double it
    const float exponent = static_cast<float>((bits >> 23) - 126 - low);
    const float x = bits_float(mantissa + (low << 23)) - 1.0f;
    const float square = x * x;
    float y = x * 7.0376836292e-2f + -1.1514610310e-1f;
    y = y * x + 1.1676998740e-1f;
    y = y * x + -1.2420140846e-1f;
    y = y * x + 1.4249322787e-1f;
    y = y * x + -1.6668057665e-1f;
    y = y * x + 2.0000714765e-1f;
    y = y * x + -2.4999993993e-1f;
    y = y * x + 3.3333331174e-1f;
    y = y * x * square;
    y = y + exponent * -2.12194440e-4f;
    y = y - square * 0.5f;
    return (x + y) + exponent * 0.693359375f;
}

// Two words to two normals: radius from the first, angle from the second.
SF_INLINE void box_muller(uint32_t word0, uint32_t word1, float& first, float& second) {
    const float radius = std::sqrt(log_unit(word_to_float(word0) * 0x1p-32f + 0x1p-33f) * -2.0f);
    const uint32_t quadrant = (word1 + 0x20000000u) >> 30;
    const float angle = static_cast<float>(static_cast<int32_t>(word1 << 2)) * 3.657295198167899e-10f;
    const float square = angle * angle;
    const float sine =
        ((square * -1.9515295891e-4f + 8.3321608736e-3f) * square + -1.6666654611e-1f) * square * angle + angle;
    const float tail = ((square * 2.443315711809948e-5f + -1.388731625493765e-3f) * square + 4.166664568298827e-2f) *
                       square * square;
    const float cosine = tail - square * 0.5f + 1.0f;
    const bool odd = (quadrant & 1u) != 0;
    const float a = odd ? sine : cosine;
    const float b = odd ? cosine : sine;
    // The sign bit is set in quadrants 1 and 2 of the first, 2 and 3 of the second.
    const uint32_t sign_a = ((quadrant ^ (quadrant >> 1)) & 1u) << 31;
    const uint32_t sign_b = (quadrant >> 1) << 31;
    first = radius * bits_float(float_bits(a) ^ static_cast<int32_t>(sign_a));
    second = radius * bits_float(float_bits(b) ^ static_cast<int32_t>(sign_b));
}

// The normals of the four voxels x = 4 * group .. 4 * group + 3 of a row.
SF_INLINE void normal4(uint32_t group, uint32_t y, uint32_t z, uint32_t channel, uint32_t step, uint32_t sample,
                       uint64_t seed, float& n0, float& n1, float& n2, float& n3) {
    const Words words = philox4x32_10({group | (y << 16), z | (channel << 16), step, sample},
                                      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    box_muller(words.w0, words.w1, n0, n1);
    box_muller(words.w2, words.w3, n2, n3);
}

}  // namespace scorefusion
