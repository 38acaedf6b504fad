#include "parallel.h"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#include <sched.h>
#endif

namespace batchnorm {
namespace {

// `threads − 1` sleepers, each woken once a job.
class Pool {
public:
    explicit Pool(int64_t threads) {
        try {
            for (int64_t i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
        } catch (...) {  // as many as there are
        }
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            leaving_ = true;
        }
        wake_.notify_all();
        for (std::thread &worker : workers_) worker.join();
    }

    void run(int64_t begin, int64_t end, Task task, void *context) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            begin_ = begin, end_ = end, task_ = task, context_ = context;
            busy_ = int64_t(workers_.size());
            ++job_;
        }
        wake_.notify_all();
        share(0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
    }

private:
    void share(int64_t which) {
        const int64_t n = end_ - begin_, threads = int64_t(workers_.size()) + 1;
        const int64_t first = begin_ + n * which / threads, last = begin_ + n * (which + 1) / threads;
        if (first < last) task_(first, last, context_);
    }

    void work(int64_t which) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (uint64_t seen = 0;;) {
            wake_.wait(lock, [&] { return leaving_ || job_ != seen; });
            if (leaving_) return;
            seen = job_;
            lock.unlock();
            share(which);
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    int64_t begin_ = 0, end_ = 0, busy_ = 0;
    uint64_t job_ = 0;
    Task task_ = nullptr;
    void *context_ = nullptr;
    bool leaving_ = false;
};

int64_t cores() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    const unsigned n = std::thread::hardware_concurrency();
    return n > 0 ? int64_t(n) : 1;
}

struct Shared {
    std::mutex in_use;  // by one caller at a time
    Pool *pool = nullptr;
    int64_t threads = cores();
};

Shared *current = nullptr;

Shared *shared() {
    static const bool made = [] {
        current = new Shared;
#ifndef _WIN32
        // A child has none of the threads, and perhaps a lock that nobody will open: it leaves all that behind.
        pthread_atfork(nullptr, nullptr, [] {
            const int64_t threads = current->threads;
            current = new Shared;
            current->threads = threads;
        });
#endif
        return true;
    }();
    (void)made;
    return current;
}

}  // namespace

int pool_parallel_for(int64_t begin, int64_t end, int64_t, Task task, void *context) {
    static thread_local bool inside = false;  // a call within a call
    if (!inside) {
        try {
            Shared *own = shared();
            const std::unique_lock<std::mutex> lock(own->in_use, std::try_to_lock);
            if (lock.owns_lock() && own->threads > 1) {
                if (!own->pool) own->pool = new Pool(own->threads);
                inside = true;
                own->pool->run(begin, end, task, context);
                inside = false;
                return 0;
            }
        } catch (...) {  // no memory for a pool: nothing has run yet
        }
    }
    task(begin, end, context);
    return 0;
}

int64_t pool_threads() { return shared()->threads; }

void pool_use_threads(int64_t threads) {
    Shared *own = shared();
    const std::lock_guard<std::mutex> lock(own->in_use);
    delete own->pool;
    own->pool = nullptr;
    own->threads = threads < 1 ? 1 : threads;
}

}  // namespace batchnorm
