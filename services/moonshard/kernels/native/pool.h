// Threads that sleep between calls. No thread spins for long: where threads equal cores, spinning takes the core from the
// thread that is waited for. Between the steps of one fused call they look out for some ten microseconds, then sleep.
#pragma once
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "isa.h"

namespace moonshard {

class Pool {
public:
    Pool(int32_t num_threads, const Isa& isa);
    ~Pool();
    Pool(const Pool&) = delete;

    // Calls task(item) for each item in 0..items, the calling thread working too; returns when all are done.
    // Which thread takes which item is open: no item's result may depend on it. One call at a time (`calls`).
    template <class Task>
    void run(int64_t items, int64_t bytes, const Task& task) {
        const auto call = [](const void* t, int64_t item) { (*static_cast<const Task*>(t))(item); };
        run_items(items, bytes, call, &task);
    }

    // While one of these lives, more work is about to come: waking a sleeping thread takes longer than most steps.
    class Alert {
    public:
        explicit Alert(Pool& pool) : pool_(pool) { pool_.alert_ = true; }
        ~Alert() { pool_.alert_ = false; }
        Alert(const Alert&) = delete;

    private:
        Pool& pool_;
    };

    int32_t num_threads() const { return static_cast<int32_t>(workers_.size()) + 1; }

    // Grow-only and aligned to cache lines; valid until the next call with that `use`. Throws std::bad_alloc.
    enum Use { kTiles, kRows };  // a product's operands; what a fused call keeps between its products
    uint8_t* scratch(int64_t bytes, Use use = kTiles);

    const Isa& isa;
    std::mutex calls;  // held by whoever uses run and scratch

private:
    using Call = void (*)(const void*, int64_t);

    void run_items(int64_t items, int64_t bytes, Call call, const void* task);
    void take_items(Call call, const void* task, int64_t items);
    void work();

    std::vector<std::thread> workers_;
    std::vector<uint8_t> scratch_[2];  // by use

    std::mutex mutex_;
    std::condition_variable opened_, left_;
    Call call_ = nullptr;  // null: no job is open
    const void* task_ = nullptr;
    int64_t items_ = 0;
    std::atomic<uint64_t> job_{0};
    std::atomic<int32_t> inside_{0};  // workers that joined the job
    std::atomic<bool> alert_{false};
    bool closing_ = false;
    alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace moonshard
