// Memory of each thread's own.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace scorefusion {

struct Release {
    void operator()(char* data) const { ::operator delete(data, std::align_val_t(64)); }
};

// This thread's own memory, kept from call to call.
inline char* thread_scratch(int64_t bytes) {
    thread_local std::unique_ptr<char, Release> data;
    thread_local int64_t size = 0;
    if (bytes > size) {
        data.reset();
        data.reset(static_cast<char*>(::operator new(bytes, std::align_val_t(64))));
        std::memset(data.get(), 0, bytes);
        size = bytes;
    }
    return data.get();
}

}  // namespace scorefusion
