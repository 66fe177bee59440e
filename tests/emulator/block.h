// The state of the block that a machine runs.
#pragma once
#include <string>
#include <vector>

#include "machine.h"
#include "switch.h"

namespace emulator {

constexpr u32 MOST_THREADS = 1024;
constexpr u32 LANES = 32;

// A copy that has been asked for and not yet waited for.
struct Copy {
    u8* to;
    const u8* from;
    bool valid;
};

enum class State : u8 { Fresh, Started, AtBlockBarrier, InWarp, Ended };

struct Fiber {
    Context context;
    u8* stack = nullptr;  // its lowest byte
    std::vector<Copy> copies;      // of committed groups first
    std::vector<std::size_t> groups;  // where in `copies` each committed group ends
};

struct Warp {
    u32 live;
    u32 arrived;
    Meeting meeting;
    u64 value[LANES];
    u64 result[LANES];
    u32 choice[LANES];
    f32* d[LANES];
    const u32* a[LANES];
    const u32* b[LANES];
    u32* tiles[LANES];
};

struct Block {
    const Launch* launch = nullptr;
    u32 live = 0;
    u32 at_barrier = 0;
    u64 random = 0;
    bool ordered = false;  // `order` is that of the launch
    // Threads in the order in which they get their turn, and the place of each. The masks have a bit for every place.
    u32 order[MOST_THREADS];
    u32 place[MOST_THREADS];
    u64 ready[MOST_THREADS / 64];
    u64 alive[MOST_THREADS / 64];
    State state[MOST_THREADS];
    Fiber fibers[MOST_THREADS];
    Warp warps[MOST_THREADS / LANES];
    Context scheduler;
    Failure failure;
    const void* fault = nullptr;  // the address that could not be touched
    int signal = 0;
    u32 stacks = 0;  // fibers that have one
    u8* shared_pages = nullptr;

    Block();
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void begin(const Launch& launch);
    void begin_order(u64 number);
    void run_block(const u32 (&index)[3], u64 number);
    void take_turn();            // goes on with the first thread that is ready
    [[noreturn]] void run_fiber();  // runs fresh threads on one stack, until one of them waits
    void end_thread();
    u32 first_ready();           // fails if all wait
    void wait(State how) {
        state[running.thread] = how;
        ready[place[running.thread] / 64] &= ~(u64{1} << place[running.thread] % 64);
        take_turn();
    }
    void set_ready(u32 thread) { ready[place[thread] / 64] |= u64{1} << place[thread] % 64; }
    void release_all();   // after a block barrier
    void shuffle_order();
    std::string waiting() const;
};

// The results of a meeting that all lanes have come to.
void settle(Warp& warp);

constexpr std::size_t STACK_BYTES = 64 << 10;
constexpr std::size_t MOST_SHARED = 256 << 10;
// As large as the steps in which `-fstack-clash-protection` looks at a stack, on any processor.
constexpr std::size_t GUARD_BYTES = 64 << 10;

}  // namespace emulator
