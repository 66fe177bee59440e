#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include "block.h"
#include "pool.h"

namespace emulator {

__thread Running running __attribute__((tls_model("initial-exec"))) = {};

namespace {

const Kernel* kernels = nullptr;

// Stacks grow down into what nobody may touch.
u8* new_stack() {
    void* pages = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages, GUARD_BYTES, PROT_NONE) != 0) {
        std::perror("emulator: no memory for the stack of a thread");
        std::abort();
    }
    return static_cast<u8*>(pages) + GUARD_BYTES;
}

u64 next_random(u64& state) {
    u64 z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

void fiber_main() { running.state->run_fiber(); }

}  // namespace

Kernel::Kernel(const char* name, u32 threads, std::size_t bytes, void (*body)(const void*))
    : name(name), threads(threads), bytes(bytes), body(body), next(kernels) {
    if (find_kernel(name)) {
        std::fprintf(stderr, "emulator: two kernels are called %s\n", name);
        std::abort();
    }
    kernels = this;
}

const Kernel* find_kernel(const char* name) {
    for (const Kernel* kernel = kernels; kernel; kernel = kernel->next)
        if (std::strcmp(kernel->name, name) == 0) return kernel;
    return nullptr;
}

void fail(Cause cause, const char* format, ...) {
    char text[4096];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    Block& block = *running.state;
    static const char* const orders[] = {"ascending", "descending", "random"};
    char where[256];
    std::snprintf(where, sizeof where, "kernel %s, block (%u, %u, %u), thread %u (threads %s, blocks %s, seed %llu): ",
                  block.launch->kernel->name, running.block[0], running.block[1], running.block[2], running.thread,
                  orders[static_cast<int>(block.launch->order)], block.launch->backwards ? "backwards" : "forwards", block.launch->seed);
    block.failure = Failure{cause, std::string(where) + text};
    Context left;
    change(left, block.scheduler);
    __builtin_unreachable();
}

Block::Block() {
    void* pages = mmap(nullptr, MOST_SHARED + GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages, MOST_SHARED, PROT_READ | PROT_WRITE) != 0) {
        std::perror("emulator: no memory for a block");
        std::abort();
    }
    shared_pages = static_cast<u8*>(pages);
}

Block::~Block() {
    munmap(shared_pages, MOST_SHARED + GUARD_BYTES);
    for (u32 thread = 0; thread < stacks; ++thread) munmap(fibers[thread].stack - GUARD_BYTES, GUARD_BYTES + STACK_BYTES);
}

void Block::shuffle_order() {
    const u32 threads = running.threads;
    for (u32 i = threads - 1; i > 0; --i) std::swap(order[i], order[next_random(random) % (i + 1)]);
    std::memset(alive, 0, sizeof alive);
    for (u32 i = 0; i < threads; ++i) {
        place[order[i]] = i;
        if (state[order[i]] != State::Ended) alive[i / 64] |= u64{1} << i % 64;
    }
}

void Block::release_all() {
    at_barrier = 0;
    if (launch->order == Order::Random) shuffle_order();
    std::memcpy(ready, alive, sizeof ready);
}

u32 Block::first_ready() {
    for (u32 word = 0; word < MOST_THREADS / 64; ++word)
        if (ready[word] != 0) return order[word * 64 + static_cast<u32>(__builtin_ctzll(ready[word]))];
    fail(Cause::Deadlock, "deadlock: %s", waiting().c_str());
}

void Block::take_turn() {
    const u32 self = running.thread;
    const u32 next = first_ready();
    if (next == self) return;
    running.thread = next;
    if (state[next] == State::Fresh) {
        state[next] = State::Started;
        const u32 stagger = next % 32 * 128;  // or the tops of all stacks would share a few cache lines
        prepare(fibers[next].context, fibers[next].stack, fibers[next].stack + STACK_BYTES - stagger, fiber_main);
    }
    change(fibers[self].context, fibers[next].context);
}

void Block::end_thread() {
    const u32 self = running.thread;
    const Fiber& fiber = fibers[self];
    Warp& warp = warps[self / LANES];
    if (!fiber.copies.empty()) fail(Cause::Other, "the thread ends with %zu asynchronous copies it did not wait for", fiber.copies.size());
    if (warp.arrived > 0) fail(Cause::Other, "the thread ends while other lanes of its warp wait for it");
    const u64 bit = u64{1} << place[self] % 64;
    state[self] = State::Ended;
    alive[place[self] / 64] &= ~bit;
    ready[place[self] / 64] &= ~bit;
    --warp.live;
    --live;
    if (live > 0 && at_barrier == live) release_all();
}

void Block::run_fiber() {
    Context left;
    while (true) {
        launch->kernel->body(launch->args);
        end_thread();
        if (live == 0) break;
        const u32 self = running.thread;
        const u32 next = first_ready();
        running.thread = next;
        if (state[next] != State::Fresh) {
            change(left, fibers[next].context);
            __builtin_unreachable();
        }
        state[next] = State::Started;
        std::swap(fibers[self].stack, fibers[next].stack);
    }
    change(left, scheduler);
    __builtin_unreachable();
}

std::string Block::waiting() const {
    std::string text;
    for (u32 w = 0; w * LANES < running.threads; ++w) {
        const Warp& warp = warps[w];
        u32 barrier = 0, in_warp = 0, ended = 0;
        for (u32 lane = 0; lane < LANES; ++lane) {
            const State how = state[w * LANES + lane];
            (how == State::Ended ? ended : how == State::AtBlockBarrier ? barrier : in_warp) |= 1u << lane;
        }
        char line[160];
        std::snprintf(line, sizeof line, "%swarp %u: at the block barrier %08x, at the warp's (%u of %u) %08x, ended %08x",
                      w ? "; " : "", w, barrier, warp.arrived, warp.live, in_warp, ended);
        text += line;
    }
    return text;
}

void Block::begin(const Launch& next) {
    launch = &next;
    failure = {};
    for (; stacks < next.threads; ++stacks) fibers[stacks].stack = new_stack();
    for (u32 thread = 0; thread < next.threads; ++thread) {
        fibers[thread].copies.clear();
        fibers[thread].groups.clear();
    }
    ordered = false;
    const u32 shared = (next.shared + 15) / 16 * 16;
    running = Running{0, next.threads, {}, {next.grid[0], next.grid[1], next.grid[2]}, shared_pages + MOST_SHARED - shared, next.shared, this};
}

// Random orders depend on the block alone, so that it does not matter which thread of the host runs it.
void Block::begin_order(u64 number) {
    random = launch->seed * 0x9e3779b97f4a7c15ull + number;
    if (ordered && launch->order != Order::Random) return;
    ordered = true;
    for (u32 thread = 0; thread < launch->threads; ++thread) {
        order[thread] = launch->order == Order::Descending ? launch->threads - 1 - thread : thread;
        place[order[thread]] = thread;
    }
}

void Block::run_block(const u32 (&index)[3], u64 number) {
    const u32 threads = launch->threads;
    std::copy(index, index + 3, running.block);
    begin_order(number);
    if (launch->shared > 0) std::memset(running.shared, 0xff, launch->shared);
    live = threads;
    std::memset(state, 0, threads * sizeof state[0]);
    std::memset(alive, 0, sizeof alive);
    for (u32 thread = 0; thread < threads; thread += LANES) {
        alive[thread / 64] |= u64{0xffffffff} << thread % 64;
        warps[thread / LANES].live = LANES;
        warps[thread / LANES].arrived = 0;
    }
    release_all();
    const u32 first = first_ready();
    running.thread = first;
    state[first] = State::Started;
    prepare(fibers[first].context, fibers[first].stack, fibers[first].stack + STACK_BYTES, fiber_main);
    change(scheduler, fibers[first].context);
}

Failure check_shape(const Launch& launch) {
    const auto wrong = [&](const std::string& text) { return Failure{Cause::Shape, std::string("kernel ") + launch.kernel->name + ": " + text}; };
    if (launch.threads == 0 || launch.threads > MOST_THREADS || launch.threads % LANES != 0)
        return wrong(std::to_string(launch.threads) + " threads a block; the emulator runs multiples of 32 up to 1024");
    if (launch.threads > launch.kernel->threads)
        return wrong(std::to_string(launch.threads) + " threads a block, made for " + std::to_string(launch.kernel->threads));
    if (launch.shared > MOST_SHARED) return wrong(std::to_string(launch.shared) + " bytes of shared memory a block");
    if (launch.grid[0] == 0 || launch.grid[1] == 0 || launch.grid[2] == 0 || launch.grid[1] > 65535 || launch.grid[2] > 65535)
        return wrong("a grid of " + std::to_string(launch.grid[0]) + " x " + std::to_string(launch.grid[1]) + " x " + std::to_string(launch.grid[2]));
    return {};
}

namespace {

// Machines that run nothing are kept, with their stacks.
class Idle {
  public:
    std::unique_ptr<Block> take() {
        const std::lock_guard<std::mutex> held(lock_);
        if (blocks_.empty()) return std::make_unique<Block>();
        std::unique_ptr<Block> block = std::move(blocks_.back());
        blocks_.pop_back();
        return block;
    }
    void give(std::unique_ptr<Block> block) {
        const std::lock_guard<std::mutex> held(lock_);
        blocks_.push_back(std::move(block));
    }

  private:
    std::mutex lock_;
    std::vector<std::unique_ptr<Block>> blocks_;
};

Idle& idle() {
    static Idle* const kept = new Idle;  // never destroyed: a thread may launch while the process ends
    return *kept;
}

void run_blocks(Job& job) {
    std::unique_ptr<Block> block = idle().take();
    block->begin(job.launch);
    prepare_thread();
    const u32* grid = job.launch.grid;
    const u64 plane = u64{grid[0]} * grid[1];
    for (u64 i = job.take(); i < job.blocks; i = job.take()) {
        const u64 at = job.launch.backwards ? job.blocks - 1 - i : i;
        block->run_block({static_cast<u32>(at % grid[0]), static_cast<u32>(at % plane / grid[0]), static_cast<u32>(at / plane)}, i);
        if (block->failure.cause == Cause::None) continue;
        job.fail(i, std::move(block->failure));
        block->begin(job.launch);
    }
    running = Running{};
    idle().give(std::move(block));
}

}  // namespace

Failure run(const Launch& launch) {
    Failure failure = check_shape(launch);
    if (failure.cause != Cause::None) return failure;
    Job job(launch, u64{launch.grid[0]} * launch.grid[1] * launch.grid[2]);
    share(job, run_blocks);
    return std::move(job.failure);
}

}  // namespace emulator
