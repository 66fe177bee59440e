// What tests ask of the emulator, and no driver has.
#include <cstdio>
#include <cstring>

#include "driver.h"

using namespace emulator;

// How often kernels ran: the one of this name, or all for null.
EXPORT u64 emulatorLaunches(const char* name) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    u64 count = 0;
    for (const auto& entry : driver().counters.launches)
        if (!name || entry.first == name) count += entry.second;
    return count;
}

// Bytes, and allocations, that are in use: 0 on the device, 1 pinned.
EXPORT u64 emulatorLive(u32 kind) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    return driver().memory.live_bytes(static_cast<Kind>(kind));
}
EXPORT u64 emulatorLiveAllocations(u32 kind) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    return driver().memory.live_allocations(static_cast<Kind>(kind));
}
// Allocations that were in use when the last context went.
EXPORT u64 emulatorLeaked() {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    return driver().leaked;
}

// Copies that ran, and their bytes: 0 to the device, 1 to the host, 2 on the device.
EXPORT u64 emulatorCopies(u32 direction) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    return direction < 3 ? driver().counters.copies[direction] : 0;
}
EXPORT u64 emulatorCopiedBytes(u32 direction) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    return direction < 3 ? driver().counters.bytes[direction] : 0;
}

// 0 replays of graphs, 1 captures that gave a graph, 2 waits of the host, 3 allocations on the device, 4 sets of memory, 5 texts that
// were assembled, to be loaded or linked.
EXPORT u64 emulatorCount(u32 what) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    const Counters& c = driver().counters;
    const u64 counts[] = {c.graph_launches, c.captures, c.synchronisations, c.allocations, c.sets, c.assembled};
    return what < 6 ? counts[what] : 0;
}

// Counts begin anew, and an error that stuck is gone. Memory stays as it is.
EXPORT void emulatorReset() {
    Driver& d = driver();
    const std::lock_guard<std::recursive_mutex> held(d.lock);
    d.counters = Counters{};
    d.recorded.clear();
    d.leaked = 0;
    d.sticky = CUDA_SUCCESS;
    d.last_error.clear();
}

// The text of the last error, until the thread asks again.
EXPORT const char* emulatorLastError() {
    thread_local std::string kept;
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    kept = driver().last_error;
    return kept.c_str();
}

// Threads of blocks: 0 in orders that change with every launch, 1 ascending, 2 descending, 3 random. The seed also decides how
// streams mix.
EXPORT void emulatorOrders(u32 orders, u64 seed) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    set_orders(static_cast<Orders>(orders), seed);
    driver().random = seed;
}

// How much memory the device has from now on.
EXPORT void emulatorMemory(u64 bytes) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    driver().properties.memory = bytes;
}

// Which version the driver has from now on.
EXPORT void emulatorDriverVersion(u32 version) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    driver().properties.driver_version = static_cast<int>(version);
}

// Whether all of it is memory that work on a stream may use now: asked by emulated libraries.
EXPORT int emulatorHolds(const void* at, u64 bytes) {
    Driver& d = driver();
    const std::lock_guard<std::recursive_mutex> held(d.lock);
    const std::string wrong = d.memory.check(at, bytes);
    const Allocation* found = d.memory.find(at);
    if (wrong.empty() && found->reachable) return 1;
    std::fprintf(stderr, "emulator: %s\n", wrong.empty() ? "memory that its stream has not yet made" : wrong.c_str());
    return 0;
}

// An illegal address in what they do.
EXPORT void emulatorFail(const char* text) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    driver().fail(CUDA_ERROR_ILLEGAL_ADDRESS, text);
}

// 1 if the bytes around every allocation are whole; else the text is in `emulatorLastError`.
EXPORT u32 emulatorEdgesWhole() {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    const std::string wrong = driver().memory.check_edges();
    if (!wrong.empty()) driver().last_error = wrong;
    return wrong.empty();
}
