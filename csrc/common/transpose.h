// Transposes of four rows in registers of 16 bytes.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace scorefusion {

// Elements of a 16-byte register.
template <typename E>
constexpr int kSixteenBytes = 16 / static_cast<int>(sizeof(E));

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SF_HAS_SHUFFLES
#endif
#endif

#if defined(SF_HAS_SHUFFLES)
typedef uint16_t Eighths __attribute__((vector_size(16)));
typedef uint32_t Quarters __attribute__((vector_size(16)));
typedef uint64_t Halves __attribute__((vector_size(16)));

// Elements of a and b by turns, from their low or their high halves.
SF_INLINE Eighths low(Eighths a, Eighths b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
SF_INLINE Eighths high(Eighths a, Eighths b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
SF_INLINE Quarters low(Quarters a, Quarters b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
SF_INLINE Quarters high(Quarters a, Quarters b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
SF_INLINE Halves low(Halves a, Halves b) { return __builtin_shufflevector(a, b, 0, 2); }
SF_INLINE Halves high(Halves a, Halves b) { return __builtin_shufflevector(a, b, 1, 3); }
#endif

// Transposes four rows of 16 bytes: out[i * to + c] = in[c][at + i], rows i in order.
template <typename E>
SF_INLINE void transpose(const E* const* in, int64_t at, E* out, int64_t to) {
#if defined(SF_HAS_SHUFFLES)
    if constexpr (sizeof(E) == 4) {
        Quarters row[4];
        for (int c = 0; c < 4; ++c) std::memcpy(&row[c], in[c] + at, sizeof row[c]);
        const Halves ab[] = {(Halves)low(row[0], row[1]), (Halves)high(row[0], row[1])};
        const Halves cd[] = {(Halves)low(row[2], row[3]), (Halves)high(row[2], row[3])};
        const Halves done[] = {low(ab[0], cd[0]), high(ab[0], cd[0]), low(ab[1], cd[1]), high(ab[1], cd[1])};
        for (int i = 0; i < 4; ++i) std::memcpy(out + i * to, &done[i], sizeof done[i]);
    } else {
        Eighths row[4];
        for (int c = 0; c < 4; ++c) std::memcpy(&row[c], in[c] + at, sizeof row[c]);
        const Quarters ab[] = {(Quarters)low(row[0], row[1]), (Quarters)high(row[0], row[1])};
        const Quarters cd[] = {(Quarters)low(row[2], row[3]), (Quarters)high(row[2], row[3])};
        const Halves done[] = {(Halves)low(ab[0], cd[0]), (Halves)high(ab[0], cd[0]), (Halves)low(ab[1], cd[1]),
                               (Halves)high(ab[1], cd[1])};
        for (int i = 0; i < 8; ++i) {
            const uint64_t four = done[i / 2][i % 2];
            std::memcpy(out + i * to, &four, sizeof four);
        }
    }
#else
    for (int i = 0; i < kSixteenBytes<E>; ++i) {
        for (int c = 0; c < 4; ++c) out[i * to + c] = in[c][at + i];
    }
#endif
}

}  // namespace scorefusion
