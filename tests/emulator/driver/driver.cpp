// The state of the driver, and what every call does first.
#include "driver.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulator {

thread_local CUcontext current = nullptr;

namespace {

int primary_context;

u64 number(const char* name, u64 otherwise) {
    const char* said = std::getenv(name);
    if (!said || !*said) return otherwise;
    char* end = nullptr;
    const u64 value = std::strtoull(said, &end, 10);
    if (*end != '\0') {
        std::fprintf(stderr, "emulator: %s is %s, not a number\n", name, said);
        std::abort();
    }
    return value;
}

Properties read_environment() {
    Properties p{};
    const char* capability = std::getenv("EMULATOR_CAPABILITY");
    if (std::sscanf(capability ? capability : "8.6", "%d.%d", &p.major, &p.minor) != 2) {
        std::fprintf(stderr, "emulator: EMULATOR_CAPABILITY is %s, not as 8.6\n", capability);
        std::abort();
    }
    p.memory = number("EMULATOR_MEMORY", u64{512} << 20);
    p.devices = static_cast<int>(number("EMULATOR_DEVICES", 1));
    p.multiprocessors = static_cast<int>(number("EMULATOR_MULTIPROCESSORS", 8));
    p.driver_version = static_cast<int>(number("EMULATOR_DRIVER_VERSION", 12020));
    p.most_shared = static_cast<u32>(number("EMULATOR_SHARED", shared_of(p.major, p.minor)));
    p.seed = number("EMULATOR_SEED", 0);
    return p;
}

std::string describe(const void* at) { return driver().memory.describe(at); }

}  // namespace

const CUcontext PRIMARY = reinterpret_cast<CUcontext>(&primary_context);

u32 shared_of(int major, int minor) { return (major == 8 && minor == 0 ? 163 : major == 9 || major == 10 ? 227 : 99) << 10; }

Driver::Driver() : properties(read_environment()), random(properties.seed) { catch_faults(describe); }

Driver& driver() {
    static Driver* const kept = new Driver;  // never destroyed: threads may call while the process ends
    return *kept;
}

Stream* Driver::stream(CUstream handle) {
    // 0 and 1 both name the legacy default stream.
    if (reinterpret_cast<std::size_t>(handle) <= 1) return &legacy;
    return streams.count(handle) ? handle : nullptr;
}

void invalidate(Capture& capture) { capture.invalid = true; }

const char* name_of(CUresult result) {
    switch (result) {
#define RESULT(name, number, text) \
    case name: return #name;
        RESULTS(RESULT)
#undef RESULT
    }
    return "an unknown result";
}

void Driver::destroy_context() {
    run_all();
    leaked += memory.live_allocations(Kind::Device) + memory.live_allocations(Kind::Pinned);
    memory.release_all();
    for (Stream* stream : streams) delete stream;
    for (Event* event : events) delete event;
    for (Module* module : modules) delete module;
    streams.clear();
    events.clear();
    modules.clear();
    active.clear();
    sticky = CUDA_SUCCESS;
}

Call::Call(const char* name, u32 flags) : held_(driver().lock), name_(name) {
    Driver& d = driver();
    if (!d.initialised) refused_ = wrong(CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called");
    else if (flags & NoContext) return;
    else if (!current || d.retained == 0) refused_ = wrong(CUDA_ERROR_INVALID_CONTEXT, "the thread has no current context");
    else if (d.sticky != CUDA_SUCCESS) refused_ = d.sticky;
    else if (flags & UnsafeInCapture) {
        for (const std::shared_ptr<Capture>& capture : d.active) {
            const bool mine = capture->thread == std::this_thread::get_id();
            if (capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED || (capture->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && !mine)) continue;
            invalidate(*capture);
            refused_ = wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "not allowed while a stream captures");
        }
    }
}

CUresult Call::wrong(CUresult result, const std::string& text) const {
    driver().last_error = std::string(name_) + ": " + text;
    std::fprintf(stderr, "emulator: %s: %s: %s\n", name_, name_of(result), text.c_str());
    return result;
}

CUresult Call::done() const { return driver().sticky; }

}  // namespace emulator
