// Compiles the file that SF_LOOPS names once for each instruction set, in the namespaces baseline, avx2, avx512 and
// avx512_bf16, after lanes.h. Each defines kLanes, the floats of a vector, and kMost, the vectors of a panel of products
// (as many as registers allow); SF_WIDE stands for the instructions of x86-64-v4, SF_NARROW for those of bfloat16 too.
// Vectors are never split for a narrower machine. Include it inside a namespace, after processor.h; no include guard.

namespace baseline {
constexpr int kLanes = 8, kMost = 1;
#include "lanes.h"
#include SF_LOOPS
}  // namespace baseline

#if defined(SF_HAS_WIDE_LOOPS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kLanes = 8, kMost = 2;
#include "lanes.h"
#include SF_LOOPS
}  // namespace avx2
#pragma GCC pop_options
#define SF_WIDE
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kLanes = 16, kMost = 4;
#include "lanes.h"
#include SF_LOOPS
}  // namespace avx512
#pragma GCC pop_options
#define SF_NARROW
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16")
namespace avx512_bf16 {
constexpr int kLanes = 16, kMost = 4;
#include "lanes.h"
#include SF_LOOPS
}  // namespace avx512_bf16
#pragma GCC pop_options
#undef SF_NARROW
#undef SF_WIDE
#endif
