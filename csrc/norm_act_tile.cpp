// The loops of norm_act_loops.h for each instruction set, and the choice among them.
#include <algorithm>
#include <cmath>

#include "norm_act.h"

#if defined(SF_HAS_TARGET_CLONES) && defined(__x86_64__) && !defined(__clang__)
#define SF_HAS_WIDE_LOOPS
#include <immintrin.h>
#endif

namespace scorefusion {
namespace {

namespace baseline {
constexpr int kLanes = 8;
#include "lanes.h"
#include "norm_act_loops.h"
}  // namespace baseline

#if defined(SF_HAS_WIDE_LOOPS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kLanes = 8;
#include "lanes.h"
#include "norm_act_loops.h"
}  // namespace avx2
#pragma GCC pop_options
#define SF_WIDE
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kLanes = 16;
#include "lanes.h"
#include "norm_act_loops.h"
}  // namespace avx512
#pragma GCC pop_options
#define SF_NARROW
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16")
namespace avx512_bf16 {
constexpr int kLanes = 16;
#include "lanes.h"
#include "norm_act_loops.h"
}  // namespace avx512_bf16
#pragma GCC pop_options
#undef SF_NARROW
#undef SF_WIDE
#endif

TileLoops best() {
#if defined(SF_HAS_WIDE_LOOPS)
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (v4 && __builtin_cpu_supports("avx512bf16")) {
        return {avx512_bf16::load_voxels, avx512_bf16::block_moments, avx512_bf16::finish_layer,
                avx512_bf16::finish_group};
    }
    if (v4) return {avx512::load_voxels, avx512::block_moments, avx512::finish_layer, avx512::finish_group};
    if (v3) return {avx2::load_voxels, avx2::block_moments, avx2::finish_layer, avx2::finish_group};
#endif
    return {baseline::load_voxels, baseline::block_moments, baseline::finish_layer, baseline::finish_group};
}

}  // namespace

const TileLoops& tile_loops() {
    static const TileLoops loops = best();
    return loops;
}

}  // namespace scorefusion
