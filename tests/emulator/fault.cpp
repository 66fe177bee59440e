// Faults of kernels become failures of their launch. The handler changes where the thread goes on: to `land`, at the top of the
// fiber's stack, which nobody needs any more.
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "block.h"

namespace emulator {

namespace {

std::string (*describe_memory)(const void*) = nullptr;
struct sigaction before[NSIG];
constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE};

std::string describe(const Block& block, const u8* at) {
    const u8* stack = block.fibers[running.thread].stack;
    if (at >= stack - GUARD_BYTES && at < stack) return "the end of its stack: local variables take more than 64 KiB";
    const u8* end = block.shared_pages + MOST_SHARED;
    if (at >= end && at < end + GUARD_BYTES)
        return "byte " + std::to_string(at - running.shared) + " of shared memory, of which the block has " + std::to_string(running.shared_bytes);
    if (describe_memory) return describe_memory(at);
    char text[64];
    std::snprintf(text, sizeof text, "%p", static_cast<const void*>(at));
    return text;
}

[[noreturn]] void land() {
    const Block& block = *running.state;
    if (block.signal == SIGFPE) fail(Cause::Other, "an integer is divided by zero");
    fail(Cause::Address, "the thread touched %s", describe(block, static_cast<const u8*>(block.fault)).c_str());
}

// What was there before decides about a fault that no kernel made.
void hand_on(int signal, siginfo_t* info, void* context) {
    const struct sigaction& old = before[signal];
    if (old.sa_flags & SA_SIGINFO) return old.sa_sigaction(signal, info, context);
    if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) return old.sa_handler(signal);
    sigaction(signal, &old, nullptr);  // and the instruction that is repeated ends the process
}

void handle(int signal, siginfo_t* info, void* context) {
    Block* block = running.state;
    if (!block) {
        if (describe_memory && signal == SIGSEGV) {
            const std::string what = describe_memory(info->si_addr);
            std::fprintf(stderr, "emulator: the host touched %s\n", what.c_str());
        }
        return hand_on(signal, info, context);
    }
    block->fault = info->si_addr;
    block->signal = signal;
    const std::uintptr_t top = reinterpret_cast<std::uintptr_t>(block->fibers[running.thread].stack + STACK_BYTES) / 16 * 16 - 64;
    ucontext_t* place = static_cast<ucontext_t*>(context);
#if defined(__x86_64__) && defined(__linux__)
    place->uc_mcontext.gregs[REG_RSP] = static_cast<greg_t>(top - 8);
    place->uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(land));
#elif defined(__aarch64__) && defined(__linux__)
    place->uc_mcontext.sp = top;
    place->uc_mcontext.pc = reinterpret_cast<std::uintptr_t>(land);
#else
    (void)top;
    (void)place;
    const char text[] = "emulator: a kernel touched memory that it must not\n";
    (void)!write(2, text, sizeof text - 1);
    std::abort();
#endif
}

struct SignalStack {
    void* pages = nullptr;
    ~SignalStack() {
        if (!pages) return;
        stack_t off{};
        off.ss_flags = SS_DISABLE;
        sigaltstack(&off, nullptr);
        munmap(pages, STACK_BYTES);
    }
};

}  // namespace

void catch_faults(std::string (*describe)(const void*)) {
    static std::once_flag once;
    if (describe) describe_memory = describe;
    std::call_once(once, [] {
        for (const int signal : SIGNALS) {
            struct sigaction action{};
            action.sa_sigaction = handle;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
            sigemptyset(&action.sa_mask);
            sigaction(signal, &action, &before[signal]);
        }
    });
}

void prepare_thread() {
    thread_local SignalStack own;
    thread_local bool ready = false;
    if (ready) return;
    ready = true;
    stack_t now{};
    if (sigaltstack(nullptr, &now) != 0 || !(now.ss_flags & SS_DISABLE)) return;
    void* pages = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return;
    own.pages = pages;
    stack_t stack{};
    stack.ss_sp = pages;
    stack.ss_size = STACK_BYTES;
    sigaltstack(&stack, nullptr);
}

}  // namespace emulator
