// Memory of each thread's own, and huge pages under large results.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "view.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace scorefusion {

// Zeroed memory on a cache line's boundary.
template <typename T>
class Scratch {
public:
    explicit Scratch(int64_t count) : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)))) {
        std::fill_n(data_.get(), count, T());
    }
    T* get() const { return data_.get(); }

private:
    struct Release {
        void operator()(T* data) const { ::operator delete(data, std::align_val_t(64)); }
    };
    std::unique_ptr<T, Release> data_;
};

// This thread's own memory, kept from call to call.
inline char* thread_scratch(int64_t bytes) {
    thread_local std::unique_ptr<Scratch<char>> data;
    thread_local int64_t size = 0;
    if (bytes > size) {
        data.reset();
        data = std::make_unique<Scratch<char>>(bytes);
        size = bytes;
    }
    return data->get();
}

// Asks for huge pages under a large dense result: new memory costs its first touch, page by page, which for a large
// result takes longer than computing it. A hint; where it cannot be followed, nothing changes.
inline void prefer_huge_pages(const View& out) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kHuge = uintptr_t{1} << 21;
    uintptr_t bytes = out.element_size();
    for (int i = 0; i < out.dims; ++i) bytes *= static_cast<uintptr_t>(out.size[i]);
    const auto start = reinterpret_cast<uintptr_t>(out.data);
    const uintptr_t begin = (start + kHuge - 1) / kHuge * kHuge, end = (start + bytes) / kHuge * kHuge;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)out;
#endif
}

}  // namespace scorefusion
