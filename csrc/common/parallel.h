// Splits a range among threads. The caller says how many (torch's count).
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <vector>

namespace scorefusion {

// Calls task(context, part) once for each part of [0, parts), on several threads; returns when all are done. The
// task must not throw. See parallel.cpp.
void run_parts(int64_t parts, void (*task)(void*, int64_t), void* context);

// Calls body(begin, end) on contiguous parts of [0, count), each of at least `grain` items, one a thread.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count / std::max<int64_t>(grain, 1)));
    if (parts == 1) {
        body(int64_t{0}, count);
        return;
    }
    std::vector<std::exception_ptr> failures(parts);
    auto run = [&](int64_t part) {
        try {
            body(count * part / parts, count * (part + 1) / parts);
        } catch (...) {
            failures[part] = std::current_exception();
        }
    };
    run_parts(parts, [](void* context, int64_t part) { (*static_cast<decltype(run)*>(context))(part); }, &run);
    for (const auto& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

}  // namespace scorefusion
