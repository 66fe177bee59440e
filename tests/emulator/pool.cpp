#include "pool.h"

#include <condition_variable>
#include <cstdlib>
#include <thread>

namespace emulator {

u64 Job::take() {
    const u64 block = next++;
    return block < failed ? block : blocks;
}

void Job::fail(u64 block, Failure found) {
    const std::lock_guard<std::mutex> held(lock);
    if (block >= failed) return;
    failed = block;
    failure = std::move(found);
}

namespace {

// To wake a helper costs as much as a few blocks.
constexpr u64 WORTH_SHARING = 8;

class Pool {
  public:
    Pool() {
        const char* said = std::getenv("EMULATOR_THREADS");
        const u32 threads = said ? static_cast<u32>(std::atoi(said)) : std::thread::hardware_concurrency();
        for (u32 i = 1; i < threads && i < 16; ++i) std::thread(&Pool::help, this).detach();
        helpers_ = threads > 1;
    }

    void share(Job& job, void (*work)(Job&)) {
        std::unique_lock<std::mutex> held(lock_);
        // One launch at a time has helpers; another thread's goes alone.
        const bool shared = helpers_ && job.blocks >= WORTH_SHARING && !job_;
        if (shared) {
            job_ = &job;
            work_ = work;
            ++round_;
            wanted_.notify_all();
        }
        held.unlock();
        work(job);
        if (!shared) return;
        held.lock();
        job_ = nullptr;
        left_.wait(held, [&] { return busy_ == 0; });
    }

  private:
    void help() {
        std::unique_lock<std::mutex> held(lock_);
        u64 seen = 0;
        while (true) {
            wanted_.wait(held, [&] { return job_ && round_ != seen; });
            seen = round_;
            Job& job = *job_;
            void (*const work)(Job&) = work_;
            ++busy_;
            held.unlock();
            work(job);
            held.lock();
            if (--busy_ == 0) left_.notify_all();
        }
    }

    std::mutex lock_;
    std::condition_variable wanted_;
    std::condition_variable left_;
    Job* job_ = nullptr;
    void (*work_)(Job&) = nullptr;
    u64 round_ = 0;
    u32 busy_ = 0;
    bool helpers_ = false;
};

}  // namespace

void share(Job& job, void (*work)(Job&)) {
    static Pool* const pool = new Pool;  // never destroyed: its threads wait for as long as the process lives
    pool->share(job, work);
}

}  // namespace emulator
