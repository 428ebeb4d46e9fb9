// Work goes to the threads that PyTorch already has: its OpenMP runtime keeps them spinning for a while after each
// of its own loops, so a second set of threads would wait for a core, and starting one costs as much as a small
// operation. The runtime is GNU OpenMP, loaded by PyTorch into the process and found there by name; nothing is
// linked. Where there is none (macOS, Windows), and in a forked child, where the runtime's threads are gone and it
// would wait for them, threads are started.
#include "parallel.h"

#include <thread>

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace scorefusion {
namespace {

struct Parts {
    int64_t count;
    void (*task)(void*, int64_t);
    void* context;
};

#if defined(__linux__)
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
    int (*thread_number)();
    int (*thread_count)();
};

template <typename Function>
void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

OpenMP& openmp() {
    static OpenMP found = [] {
        OpenMP runtime{};
        find(runtime.parallel, "GOMP_parallel");
        find(runtime.thread_number, "omp_get_thread_num");
        find(runtime.thread_count, "omp_get_num_threads");
        if (runtime.thread_number == nullptr || runtime.thread_count == nullptr) runtime.parallel = nullptr;
        pthread_atfork(nullptr, nullptr, [] { openmp().parallel = nullptr; });
        return runtime;
    }();
    return found;
}

// What each thread of the team does; the team may be smaller than asked for.
void share(void* given) {
    const auto& parts = *static_cast<const Parts*>(given);
    const int64_t stride = openmp().thread_count();
    for (int64_t part = openmp().thread_number(); part < parts.count; part += stride) {
        parts.task(parts.context, part);
    }
}
#endif

}  // namespace

void run_parts(int64_t count, void (*task)(void*, int64_t), void* context) {
#if defined(__linux__)
    if (openmp().parallel != nullptr) {
        Parts parts{count, task, context};
        openmp().parallel(share, &parts, static_cast<unsigned>(count), 0);
        return;
    }
#endif
    std::vector<std::thread> workers;
    workers.reserve(count - 1);
    for (int64_t part = 1; part < count; ++part) workers.emplace_back(task, context, part);
    task(context, 0);
    for (auto& worker : workers) worker.join();
}

}  // namespace scorefusion
