#include "pool.h"

namespace moonshard {

namespace {
constexpr int64_t kAlignment = 64;
// Below this, waking a thread costs more than it brings.
constexpr int64_t kBytesToShare = 256 * 1024;
constexpr int kLooks = 1000;  // some ten microseconds

// Looks at `condition` for a moment; whoever calls this sleeps afterwards if need be.
template <class Condition>
void look_for(const Condition& condition) {
    for (int i = 0; i < kLooks && !condition(); i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}
}  // namespace

Pool::Pool(int32_t num_threads, const Isa& isa_) : isa(isa_) {
    for (int32_t i = 1; i < num_threads; i++) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
    }
    opened_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

uint8_t* Pool::scratch(int64_t bytes, Use use) {
    std::vector<uint8_t>& memory = scratch_[use];
    if (static_cast<int64_t>(memory.size()) < bytes + kAlignment) {
        memory.clear();
        memory.shrink_to_fit();
        memory.resize(static_cast<size_t>(bytes + kAlignment));
    }
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    return memory.data() + (kAlignment - address % kAlignment) % kAlignment;
}

void Pool::take_items(Call call, const void* task, int64_t items) {
    for (int64_t item = next_.fetch_add(1); item < items; item = next_.fetch_add(1)) call(task, item);
}

// A worker that wakes too late finds the job closed and is not waited for: an oversubscribed core delays nobody.
void Pool::run_items(int64_t items, int64_t bytes, Call call, const void* task) {
    if (workers_.empty() || items < 2 || bytes < kBytesToShare) {
        for (int64_t item = 0; item < items; item++) call(task, item);
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        call_ = call, task_ = task, items_ = items;
        next_.store(0);
        job_++;
    }
    opened_.notify_all();
    take_items(call, task, items);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        call_ = nullptr;
    }
    if (alert_) look_for([this] { return inside_ == 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    left_.wait(lock, [this] { return inside_ == 0; });
}

void Pool::work() {
    uint64_t done = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        if (alert_ && job_ == done) {
            lock.unlock();
            look_for([&] { return job_ != done || !alert_; });
            lock.lock();
        }
        opened_.wait(lock, [&] { return closing_ || (call_ != nullptr && job_ != done); });
        if (closing_) return;
        done = job_;
        const Call call = call_;
        const void* task = task_;
        const int64_t items = items_;
        inside_++;
        lock.unlock();
        take_items(call, task, items);
        lock.lock();
        if (--inside_ == 0) left_.notify_one();
    }
}

}  // namespace moonshard
