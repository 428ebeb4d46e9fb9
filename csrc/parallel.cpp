// Threads that wait for work, because starting one costs as much as a small operation.
//
// Each worker sleeps on its own condition and is lent to one caller at a time. Callers in several Python threads
// borrow different workers; one that finds too few starts more, and their number stays at what callers asked
// for at once. A forked child has none of its parent's threads, so it begins with an empty pool of its own.
#include "parallel.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace scorefusion {
namespace {

class Worker {
public:
    Worker() : thread_([this] { loop(); }) {}

    ~Worker() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            state_ = State::kStop;
        }
        changed_.notify_all();
        thread_.join();
    }

    void start(void (*task)(void*, int64_t), void* context, int64_t part) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            task_ = task;
            context_ = context;
            part_ = part;
            state_ = State::kWork;
        }
        changed_.notify_all();
    }

    void finish() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return state_ == State::kIdle; });
    }

private:
    enum class State { kIdle, kWork, kStop };

    void loop() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            changed_.wait(lock, [this] { return state_ != State::kIdle; });
            if (state_ == State::kStop) return;
            lock.unlock();
            task_(context_, part_);
            lock.lock();
            state_ = State::kIdle;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    State state_ = State::kIdle;
    void (*task_)(void*, int64_t) = nullptr;
    void* context_ = nullptr;
    int64_t part_ = 0;
    std::thread thread_;  // last: it uses the others
};

using Workers = std::vector<std::unique_ptr<Worker>>;

class Pool {
public:
    Workers borrow(int64_t count) {
        Workers lent;
        lent.reserve(count);
        const std::lock_guard<std::mutex> lock(mutex_);
        while (static_cast<int64_t>(lent.size()) < count && !idle_.empty()) {
            lent.push_back(std::move(idle_.back()));
            idle_.pop_back();
        }
        return lent;
    }

    void give_back(Workers lent) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto& worker : lent) idle_.push_back(std::move(worker));
    }

private:
    std::mutex mutex_;
    Workers idle_;
};

// The pool of this process; its threads are joined when the module's statics are destroyed.
std::unique_ptr<Pool>& pool() {
    static std::unique_ptr<Pool> current = [] {
#if defined(__unix__) || defined(__APPLE__)
        // The parent's pool is left as it is, locks and all: none of its threads live in the child.
        pthread_atfork(nullptr, nullptr, [] {
            pool().release();
            pool() = std::make_unique<Pool>();
        });
#endif
        return std::make_unique<Pool>();
    }();
    return current;
}

}  // namespace

void run_parts(int64_t parts, void (*task)(void*, int64_t), void* context) {
    Pool& home = *pool();
    Workers lent = home.borrow(parts - 1);
    try {
        while (static_cast<int64_t>(lent.size()) < parts - 1) lent.push_back(std::make_unique<Worker>());
    } catch (...) {
        home.give_back(std::move(lent));  // no more threads to be had: the caller's own does it all
        for (int64_t part = 0; part < parts; ++part) task(context, part);
        return;
    }
    for (int64_t part = 1; part < parts; ++part) lent[part - 1]->start(task, context, part);
    task(context, 0);
    for (auto& worker : lent) worker->finish();
    home.give_back(std::move(lent));
}

}  // namespace scorefusion
