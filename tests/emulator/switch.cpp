// What a function must find again after a call is kept on the stack that is left; the caller of `change` keeps the rest. Control
// words of the floating-point units are not kept: kernels have no way to change them.
#include "switch.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)

extern "C" void emulator_change(void** from, void* to);
asm(R"(
.text
.type emulator_change, @function
.hidden emulator_change
.globl emulator_change
emulator_change:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_change, .-emulator_change
)");

namespace emulator {

void prepare(Context& context, unsigned char*, unsigned char* top, void (*entry)()) {
    // Six registers, the address to return to, and the one that `entry` would return to.
    void** frame = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(top) & ~std::uintptr_t{15}) - 8;
    std::memset(frame, 0, 8 * sizeof(void*));
    frame[6] = reinterpret_cast<void*>(entry);
    context.place = frame;
}

void change(Context& from, const Context& to) { emulator_change(&from.place, to.place); }

}  // namespace emulator

#elif defined(__aarch64__) && defined(__linux__)

extern "C" void emulator_change(void** from, void* to);
asm(R"(
.text
.type emulator_change, %function
.hidden emulator_change
.globl emulator_change
emulator_change:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_change, .-emulator_change
)");

namespace emulator {

void prepare(Context& context, unsigned char*, unsigned char* top, void (*entry)()) {
    unsigned char* frame = reinterpret_cast<unsigned char*>(reinterpret_cast<std::uintptr_t>(top) & ~std::uintptr_t{15}) - 160;
    std::memset(frame, 0, 160);
    std::memcpy(frame + 88, &entry, sizeof entry);
    context.place = frame;
}

void change(Context& from, const Context& to) { emulator_change(&from.place, to.place); }

}  // namespace emulator

#else

#include <ucontext.h>

// The place of a stack is the ucontext_t that its last `change` filled, on that stack.
namespace emulator {

void prepare(Context& context, unsigned char* bottom, unsigned char* top, void (*entry)()) {
    ucontext_t* kept = reinterpret_cast<ucontext_t*>(reinterpret_cast<std::uintptr_t>(top - sizeof(ucontext_t)) & ~std::uintptr_t{15});
    getcontext(kept);
    kept->uc_stack.ss_sp = bottom;
    kept->uc_stack.ss_size = static_cast<std::size_t>(reinterpret_cast<unsigned char*>(kept) - bottom);
    kept->uc_link = nullptr;
    makecontext(kept, entry, 0);
    context.place = kept;
}

void change(Context& from, const Context& to) {
    ucontext_t here;
    from.place = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to.place));
}

}  // namespace emulator

#endif
