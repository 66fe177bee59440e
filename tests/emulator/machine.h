// The machine that runs the blocks of a launch: a fiber for every thread of a block, on one thread of the host.
#pragma once
#include <cstddef>
#include <string>

#include "../../kernels/abi.cuh"

namespace emulator {

// --- kernels ------------------------------------------------------------------------------------------------------------

// A kernel that the host's compiler compiled, known by its name from the time the library is loaded.
struct Kernel {
    const char* name;
    u32 threads;
    std::size_t bytes;  // of its arguments
    void (*body)(const void* args);
    const Kernel* next;

    Kernel(const char* name, u32 threads, std::size_t bytes, void (*body)(const void*));
};

// Null if no kernel has this name.
const Kernel* find_kernel(const char* name);

// --- launches -----------------------------------------------------------------------------------------------------------

enum class Order { Ascending, Descending, Random };

struct Launch {
    const Kernel* kernel;
    const void* args;
    u32 grid[3];
    u32 threads;
    u32 shared;  // bytes
    Order order;     // of threads
    bool backwards;  // blocks from the last to the first
    u64 seed;        // of random orders
};

enum class Cause : u8 { None, Address, Alignment, Deadlock, Shape, Other };

// What was wrong, with the kernel, the block and the thread.
struct Failure {
    Cause cause = Cause::None;
    std::string text;
};

// What is wrong with the launch before any of it runs.
Failure check_shape(const Launch& launch);

// Runs all blocks, or as many as come before the first failure.
Failure run(const Launch& launch);

// How launches of this process are run: `Rotating` gives every launch the next of the others, with blocks forwards and backwards.
enum class Orders : u8 { Rotating, Ascending, Descending, Random };
void set_orders(Orders orders, u64 seed);

// Sets the orders of a launch: as `set_orders` said last, else as EMULATOR_ORDER and EMULATOR_SEED say, else rotating.
void choose_order(Launch& launch);

// The same by name in a chosen order, for tests of one kernel. Returns the text of the failure.
std::string launch(const char* name, u32 x, u32 y, u32 z, u32 threads, u32 shared, const void* args, std::size_t bytes);

template <class Args>
std::string launch(const char* name, u32 x, u32 y, u32 z, u32 threads, u32 shared, const Args& args) {
    return launch(name, x, y, z, threads, shared, &args, sizeof args);
}

// --- what the kernels' side calls ---------------------------------------------------------------------------------------

// Where the thread that runs now is.
struct Running {
    u32 thread;
    u32 threads;
    u32 block[3];
    u32 grid[3];
    u8* shared;
    u32 shared_bytes;
    struct Block* state;  // null outside kernels
};
extern __thread Running running __attribute__((tls_model("initial-exec")));

// What the lanes of a warp do together.
enum class Meeting : u8 { None, Barrier, ShuffleXor, Shuffle, ShuffleDown, Ballot, LoadTiles, MmaBf16, MmaF16 };

enum class Access : u8 { LoadGlobal, LoadShared, Store };

void block_barrier();
void warp_barrier();
u64 exchange(Meeting meeting, u64 value, u32 choice);
void multiply(Meeting meeting, f32* d, const u32* a, const u32* b);
void load_tiles(u32* tiles, const void* row);
void check_piece(const void* at, Access access);
void copy_async(void* to, const void* from, bool valid);
void copy_async_commit();
void copy_async_wait(u32 newest);
f32 f16_to_f32(u16 bits);
u16 f32_to_f16(f32 value);

// Ends the launch with this message.
[[noreturn]] void fail(Cause cause, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Turns faults of kernels into failures. `describe` says what an address of the device is.
void catch_faults(std::string (*describe)(const void* at));
// Gives the calling thread the stack that faults are handled on.
void prepare_thread();

}  // namespace emulator
