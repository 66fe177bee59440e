// Loads, stores and asynchronous copies of 16 bytes, with the checks that the device makes.
#include <cstdint>
#include <cstring>

#include "block.h"

namespace emulator {

namespace {

bool in_shared(const void* at) {
    const u8* byte = static_cast<const u8*>(at);
    return byte >= running.shared && byte < running.shared + running.shared_bytes;
}

void check_aligned(const void* at, const char* what) {
    if (reinterpret_cast<std::uintptr_t>(at) % 16 != 0) fail(Cause::Alignment, "%s at %p, which is not a multiple of 16", what, at);
}

void perform(const Copy& copy) {
    if (copy.valid) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
}

}  // namespace

void check_piece(const void* at, Access access) {
    check_aligned(at, access == Access::Store ? "a piece is stored" : "a piece is loaded");
    if (access == Access::LoadGlobal && in_shared(at)) fail(Cause::Address, "a piece of global memory is loaded at %p, which is shared memory", at);
    if (access == Access::LoadShared && !in_shared(at)) fail(Cause::Address, "a row of a tile is at %p, which is no shared memory", at);
}

void copy_async(void* to, const void* from, bool valid) {
    check_aligned(to, "an asynchronous copy goes to");
    if (!in_shared(to) || !in_shared(static_cast<u8*>(to) + 15))
        fail(Cause::Address, "an asynchronous copy goes to byte %td of shared memory, of which the block has %u bytes", static_cast<u8*>(to) - running.shared,
             running.shared_bytes);
    if (valid) check_aligned(from, "an asynchronous copy comes from");
    if (valid && in_shared(from)) fail(Cause::Address, "an asynchronous copy comes from shared memory");
    std::memset(to, 0xff, 16);
    running.state->fibers[running.thread].copies.push_back(Copy{static_cast<u8*>(to), static_cast<const u8*>(from), valid});
}

void copy_async_commit() {
    Fiber& fiber = running.state->fibers[running.thread];
    fiber.groups.push_back(fiber.copies.size());
}

void copy_async_wait(u32 newest) {
    Fiber& fiber = running.state->fibers[running.thread];
    if (fiber.groups.size() <= newest) return;
    const std::size_t groups = fiber.groups.size() - newest;
    const std::size_t done = fiber.groups[groups - 1];
    for (std::size_t i = 0; i < done; ++i) perform(fiber.copies[i]);
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + static_cast<std::ptrdiff_t>(done));
    fiber.groups.erase(fiber.groups.begin(), fiber.groups.begin() + static_cast<std::ptrdiff_t>(groups));
    for (std::size_t& end : fiber.groups) end -= done;
}

}  // namespace emulator
