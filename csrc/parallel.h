// Splits a range among threads. The caller says how many (torch's count), so nothing is oversubscribed, and no
// second OpenMP runtime meets torch's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace scorefusion {

// Calls body(begin, end) on contiguous parts of [0, count), each of at least `grain` items, one a thread.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count / std::max<int64_t>(grain, 1)));
    std::vector<std::exception_ptr> failures(parts);
    const auto run = [&](int64_t part) {
        try {
            body(count * part / parts, count * (part + 1) / parts);
        } catch (...) {
            failures[part] = std::current_exception();
        }
    };
    std::vector<std::thread> workers;
    workers.reserve(parts - 1);
    for (int64_t part = 1; part < parts; ++part) workers.emplace_back(run, part);
    run(0);
    for (auto& worker : workers) worker.join();
    for (const auto& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

}  // namespace scorefusion
