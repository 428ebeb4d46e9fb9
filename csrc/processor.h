// What the processor has, for files that hold a copy of their loops for each instruction set.
#pragma once

#include <cstdlib>
#include <cstring>

namespace scorefusion {

enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512BF16 };

// The best that is here, or the one that SCOREFUSION_CPU names (baseline, avx2, avx512) if that is less: tests run
// every copy on one machine with it.
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

}  // namespace scorefusion
