// The processor's instruction set, the loops compiled for each (common/loops.h), and the numbers that products take.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "view.h"

#if defined(SF_HAS_TARGET_CLONES) && defined(__x86_64__) && !defined(__clang__)
#define SF_HAS_WIDE_LOOPS
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define SF_UNROLL _Pragma("GCC unroll 64")
#else
#define SF_UNROLL
#endif

namespace scorefusion {

enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512BF16 };

// The best instruction set of this processor, or the one that SCOREFUSION_CPU names (baseline, avx2, avx512) if that is
// less: tests run every copy of the loops on one machine with it.
inline InstructionSet instruction_set() {
    static const InstructionSet best = [] {
        InstructionSet found = InstructionSet::kBaseline;
#if defined(__x86_64__) && defined(__GNUC__)
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
            __builtin_cpu_supports("bmi2")) {
            found = InstructionSet::kAvx2;
        }
        if (found == InstructionSet::kAvx2 && __builtin_cpu_supports("avx512f") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
            found = __builtin_cpu_supports("avx512bf16") ? InstructionSet::kAvx512BF16 : InstructionSet::kAvx512;
        }
#endif
        const char* asked = std::getenv("SCOREFUSION_CPU");
        const char* const names[] = {"baseline", "avx2", "avx512"};
        for (int i = 0; asked != nullptr && i < 3; ++i) {
            const auto named = static_cast<InstructionSet>(i);
            if (std::strcmp(asked, names[i]) == 0 && named < found) found = named;
        }
        return found;
    }();
    return best;
}

// SF_BEST(name) is that name of the best instruction set's namespace; see loops.h.
#if defined(SF_HAS_WIDE_LOOPS)
#define SF_BEST(name) best_of(baseline::name, avx2::name, avx512::name, avx512_bf16::name)

template <typename T>
const T& best_of(const T& baseline, const T& avx2, const T& avx512, const T& avx512_bf16) {
    const T* const copies[] = {&baseline, &avx2, &avx512, &avx512_bf16};
    return *copies[static_cast<int>(instruction_set())];
}
#else
#define SF_BEST(name) baseline::name
#endif

// What one step of a matrix product multiplies: a float32, or two bfloat16 whose products are added.
struct Single {
    using Part = float;
    float value;
};
struct Pair {
    using Part = BFloat16;
    uint32_t bits;
};

}  // namespace scorefusion
