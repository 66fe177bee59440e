// Dry runs: launches are written down instead of run, for those who want to know what a model of any size puts on a device.
#include <cstring>

#include "driver.h"

using namespace emulator;

// As `Launched` in mod.rs.
struct RecordedLaunch {
    const char* kernel;
    const void* args;
    u64 bytes;     // of the arguments
    u64 stream;    // a number of its own for each
    u32 grid[3];
    u32 threads;
    u32 shared;
    u32 pad;
};

// From here on no kernel runs, and allocations of more than `largest` bytes are addresses without memory: copies to and from them, and
// sets, move nothing. 0 for `largest` ends it for what comes then.
EXPORT void emulatorDry(u64 largest) {
    Driver& d = driver();
    const std::lock_guard<std::recursive_mutex> held(d.lock);
    d.run_all();
    d.dry = largest > 0;
    d.memory.keep_bare(largest > 0 ? largest : ~u64{0});
    d.recorded.clear();
}

// Launches that were written down since, or since the last reset.
EXPORT u64 emulatorRecorded() {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    return driver().recorded.size();
}

// One of them, 1 if it is there. Its arguments stay until the next reset.
EXPORT u32 emulatorRecord(u64 index, RecordedLaunch* to) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    if (index >= driver().recorded.size()) return 0;
    const Op& op = driver().recorded[index];
    const Launch& launch = op.launch;
    const u64 stream = reinterpret_cast<u64>(op.stream);
    *to = {launch.kernel->name, op.args.data(), launch.kernel->bytes, stream, {launch.grid[0], launch.grid[1], launch.grid[2]}, launch.threads, launch.shared, 0};
    return 1;
}

// Copies memory of the device, 1 if all of it is there: in use, and not an address without memory.
EXPORT u32 emulatorRead(u64 at, void* to, u64 bytes) {
    Driver& d = driver();
    const std::lock_guard<std::recursive_mutex> held(d.lock);
    const void* from = reinterpret_cast<const void*>(at);
    if (!d.memory.check(from, bytes).empty()) return 0;
    const Allocation& found = *d.memory.find(from);
    if (!found.reachable || found.bare) return 0;
    std::memcpy(to, from, bytes);
    return 1;
}

// The device that is opened next: its compute capability, which decides about shared memory, and its multiprocessors.
EXPORT void emulatorDevice(u32 major, u32 minor, u32 multiprocessors) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    Properties& p = driver().properties;
    p.major = static_cast<int>(major);
    p.minor = static_cast<int>(minor);
    p.multiprocessors = static_cast<int>(multiprocessors);
    p.most_shared = shared_of(p.major, p.minor);
}
