// The loops of norm_act and of its gradient for each instruction set, and the choice among them.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "norm_act.h"
#include "processor.h"

#define SF_TILE_LOOPS(set)                                                                                           \
    TileLoops {                                                                                                      \
        set::load_voxels, set::block_moments, set::finish_layer, set::finish_group, set::layer_gradient,             \
            set::group_sums, set::group_gradient, set::store_voxels                                                  \
    }

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
#include "norm_act_backward_loops.h"
}  // namespace baseline

#if defined(SF_HAS_WIDE_LOOPS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kLanes = 8;
#include "lanes.h"
#include "norm_act_loops.h"
#include "norm_act_backward_loops.h"
}  // namespace avx2
#pragma GCC pop_options
#define SF_WIDE
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kLanes = 16;
#include "lanes.h"
#include "norm_act_loops.h"
#include "norm_act_backward_loops.h"
}  // namespace avx512
#pragma GCC pop_options
#define SF_NARROW
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16")
namespace avx512_bf16 {
constexpr int kLanes = 16;
#include "lanes.h"
#include "norm_act_loops.h"
#include "norm_act_backward_loops.h"
}  // namespace avx512_bf16
#pragma GCC pop_options
#undef SF_NARROW
#undef SF_WIDE
#endif

TileLoops best() {
#if defined(SF_HAS_WIDE_LOOPS)
    switch (instruction_set()) {
        case InstructionSet::kAvx512BF16: return SF_TILE_LOOPS(avx512_bf16);
        case InstructionSet::kAvx512: return SF_TILE_LOOPS(avx512);
        case InstructionSet::kAvx2: return SF_TILE_LOOPS(avx2);
        default: break;
    }
#endif
    return SF_TILE_LOOPS(baseline);
}

}  // namespace

const TileLoops& tile_loops() {
    static const TileLoops loops = best();
    return loops;
}

}  // namespace scorefusion
