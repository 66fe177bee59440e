// Threads of the host that run blocks of a launch beside the one that asked for it.
#pragma once
#include <atomic>
#include <mutex>

#include "machine.h"

namespace emulator {

// The blocks of a launch, taken in order. Of several failures the one of the first block counts, which does not depend on who ran
// what: no block is left out that comes before it.
struct Job {
    const Launch& launch;
    u64 blocks;
    std::atomic<u64> next{0};
    std::atomic<u64> failed;  // the first block that failed, or `blocks`
    std::mutex lock;
    Failure failure;

    Job(const Launch& launch, u64 blocks) : launch(launch), blocks(blocks), failed(blocks) {}
    // The next block to run, or `blocks`.
    u64 take();
    void fail(u64 block, Failure failure);
};

// Runs `work(job)` here and on helpers, and returns when all of them have left it. EMULATOR_THREADS says how many there are in all,
// else as many as the host has processors.
void share(Job& job, void (*work)(Job& job));

}  // namespace emulator
