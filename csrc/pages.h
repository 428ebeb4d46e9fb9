// Memory that has just been allocated costs its first touch, page by page: for a large result, more than computing it.
#pragma once

#include <cstdint>

#include "view.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace scorefusion {

// Asks for huge pages under a large dense result. A hint; where it cannot be followed, nothing changes.
inline void prefer_huge_pages(const View& out) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kHuge = uintptr_t{1} << 21;
    uintptr_t bytes = out.dtype == DType::kFloat32 ? 4 : 2;
    for (int i = 0; i < out.dims; ++i) bytes *= static_cast<uintptr_t>(out.size[i]);
    const auto start = reinterpret_cast<uintptr_t>(out.data);
    const uintptr_t begin = (start + kHuge - 1) / kHuge * kHuge, end = (start + bytes) / kHuge * kHuge;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)out;
#endif
}

}  // namespace scorefusion
