// Calls that allocate, free, copy and set memory.
#include <cstring>

#include "driver.h"

using namespace emulator;

namespace {

u8* host(CUdeviceptr at) { return reinterpret_cast<u8*>(at); }

bool fits(u64 bytes) {
    Driver& d = driver();
    if (d.memory.live_bytes(Kind::Device) + bytes <= d.properties.memory) return true;
    d.run_all();  // what waits to be freed
    return d.memory.live_bytes(Kind::Device) + bytes <= d.properties.memory;
}

CUresult allocate(const Call& call, CUdeviceptr* at, std::size_t bytes, Stream* on) {
    Driver& d = driver();
    if (bytes == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "an allocation of 0 bytes");
    if (!fits(bytes)) {
        d.last_error = "out of memory: " + std::to_string(bytes) + " bytes asked for, " + std::to_string(d.memory.live_bytes(Kind::Device)) +
                       " of " + std::to_string(d.properties.memory) + " in use";
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    u8* made = d.memory.allocate(bytes, Kind::Device, on == nullptr);
    if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
    ++d.counters.allocations;
    *at = reinterpret_cast<CUdeviceptr>(made);
    if (!on) return call.done();
    Op op;
    op.kind = Op::Kind::Reach;
    op.allocation = d.memory.find(made);
    return d.submit(*on, std::move(op));
}

// The allocation that begins at `at`, or null with the reason said.
Allocation* owned(const Call& call, const void* at, Kind kind) {
    Allocation* found = driver().memory.find(at);
    if (found && found->at == at && found->kind == kind && !found->freed && !found->leaving) return found;
    const bool twice = found && found->at == at && (found->freed || found->leaving);
    call.wrong(CUDA_ERROR_INVALID_VALUE, (twice ? "freed twice: " : "not the start of an allocation: ") + driver().memory.describe(at));
    return nullptr;
}

// The first thing wrong with a range of the device when work on it is asked for.
std::string check_range(const u8* at, std::size_t bytes) {
    const std::string wrong = driver().memory.check(at, bytes);
    if (!wrong.empty()) return wrong;
    return driver().memory.find(at)->leaving ? "use after free: " + driver().memory.describe(at) : std::string();
}

Stream* usable(const Call& call, CUstream handle, CUresult* result) {
    Driver& d = driver();
    Stream* stream = d.stream(handle);
    if (!stream) *result = call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (stream == &d.legacy) {
        for (const std::shared_ptr<Capture>& capture : d.active) {
            if (!capture->origin->blocking) continue;
            invalidate(*capture);
            *result = call.wrong(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "work on the legacy default stream while a blocking stream captures");
            return nullptr;
        }
    }
    return stream;
}

// Memory of the device or pinned, which a stream may still read or write when the call has returned.
bool known(const void* at) { return driver().pinned(at) || driver().memory.find(at); }

CUresult copy(const char* name, u8* to, const u8* from, std::size_t bytes, Direction direction, CUstream handle, bool wait) {
    const Call call(name, wait ? Call::UnsafeInCapture : 0u);
    if (call.refused()) return call.refused();
    CUresult result = CUDA_SUCCESS;
    Driver& d = driver();
    Stream* stream = usable(call, handle, &result);
    if (!stream) return result;
    if (bytes == 0) return call.done();
    if (direction != Direction::ToHost || d.memory.find(to))
        if (const std::string wrong = check_range(to, bytes); !wrong.empty()) return call.wrong(CUDA_ERROR_INVALID_VALUE, "to " + wrong);
    if (direction != Direction::ToDevice || d.memory.find(from))
        if (const std::string wrong = check_range(from, bytes); !wrong.empty()) return call.wrong(CUDA_ERROR_INVALID_VALUE, "from " + wrong);
    const bool pageable = (direction == Direction::ToDevice && !known(from)) || (direction == Direction::ToHost && !known(to));
    if (pageable && stream->capture) {
        invalidate(*stream->capture);
        return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a copy to or from memory that is not pinned is captured");
    }
    Op op;
    op.kind = Op::Kind::Copy;
    op.to = to;
    op.from = from;
    op.bytes = bytes;
    op.direction = direction;
    if (direction == Direction::ToDevice && !stream->capture) {
        op.from_staged = pageable;
        op.watched = !pageable && !d.bare(to) && d.pinned(from) && !d.pending(from, bytes, true);
        if (op.from_staged || op.watched) op.staged.assign(from, from + bytes);
    }
    // Until the copy has run, its destination holds nothing that anyone may use.
    if (direction == Direction::ToHost && !stream->capture && d.pinned(to) && !d.pending(to, bytes, false)) std::memset(to, 0xff, bytes);
    result = d.submit(*stream, std::move(op));
    if (result != CUDA_SUCCESS) return result;
    if (wait || (pageable && direction == Direction::ToHost)) return d.run_stream(*stream);
    return call.done();
}

CUresult set(const char* name, CUdeviceptr to, u32 value, u32 width, std::size_t count, CUstream handle) {
    const Call call(name);
    if (call.refused()) return call.refused();
    CUresult result = CUDA_SUCCESS;
    Stream* stream = usable(call, handle, &result);
    if (!stream) return result;
    if (count == 0) return call.done();
    if (to % width != 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "the destination is not aligned");
    if (const std::string wrong = check_range(host(to), count * width); !wrong.empty()) return call.wrong(CUDA_ERROR_INVALID_VALUE, wrong);
    Op op;
    op.kind = Op::Kind::Set;
    op.to = host(to);
    op.bytes = count * width;
    op.value = value;
    op.width = width;
    result = driver().submit(*stream, std::move(op));
    return result == CUDA_SUCCESS ? call.done() : result;
}

Direction direction_of(const void* to, const void* from) {
    const Allocation* to_found = driver().memory.find(to);
    const Allocation* from_found = driver().memory.find(from);
    const bool to_device = to_found && to_found->kind == Kind::Device;
    const bool from_device = from_found && from_found->kind == Kind::Device;
    return to_device && from_device ? Direction::OnDevice : to_device ? Direction::ToDevice : Direction::ToHost;
}

}  // namespace

// --- allocations --------------------------------------------------------------------------------------------------------

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* at, std::size_t bytes) {
    const Call call("cuMemAlloc", Call::UnsafeInCapture);
    return call.refused() ? call.refused() : allocate(call, at, bytes, nullptr);
}

EXPORT CUresult cuMemAllocAsync(CUdeviceptr* at, std::size_t bytes, CUstream handle) {
    const Call call("cuMemAllocAsync");
    if (call.refused()) return call.refused();
    CUresult result = CUDA_SUCCESS;
    Stream* stream = usable(call, handle, &result);
    if (!stream) return result;
    if (stream->capture) {
        invalidate(*stream->capture);
        return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the emulator captures no allocations");
    }
    return allocate(call, at, bytes, stream);
}

EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr* at, std::size_t bytes, CUmemoryPool, CUstream stream) { return cuMemAllocAsync(at, bytes, stream); }

EXPORT CUresult cuMemFree_v2(CUdeviceptr at) {
    const Call call("cuMemFree", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    if (at == 0) return CUDA_SUCCESS;
    Allocation* found = owned(call, host(at), Kind::Device);
    if (!found) return CUDA_ERROR_INVALID_VALUE;
    if (const std::string wrong = driver().memory.release(*found); !wrong.empty()) driver().fail(CUDA_ERROR_ILLEGAL_ADDRESS, wrong);
    return call.done();
}

EXPORT CUresult cuMemFreeAsync(CUdeviceptr at, CUstream handle) {
    const Call call("cuMemFreeAsync");
    if (call.refused()) return call.refused();
    CUresult result = CUDA_SUCCESS;
    Stream* stream = usable(call, handle, &result);
    if (!stream) return result;
    if (stream->capture) {
        invalidate(*stream->capture);
        return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the emulator captures no frees");
    }
    Allocation* found = owned(call, host(at), Kind::Device);
    if (!found) return CUDA_ERROR_INVALID_VALUE;
    found->leaving = true;
    Op op;
    op.kind = Op::Kind::Free;
    op.allocation = found;
    return driver().submit(*stream, std::move(op));
}

EXPORT CUresult cuMemHostAlloc(void** at, std::size_t bytes, unsigned) {
    const Call call("cuMemHostAlloc", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    if (bytes == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "an allocation of 0 bytes");
    *at = driver().memory.allocate(bytes, Kind::Pinned, true);
    return *at ? call.done() : CUDA_ERROR_OUT_OF_MEMORY;
}
EXPORT CUresult cuMemAllocHost_v2(void** at, std::size_t bytes) { return cuMemHostAlloc(at, bytes, 0); }

EXPORT CUresult cuMemFreeHost(void* at) {
    const Call call("cuMemFreeHost", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    Allocation* found = owned(call, at, Kind::Pinned);
    if (!found) return CUDA_ERROR_INVALID_VALUE;
    if (const std::string wrong = driver().memory.release(*found); !wrong.empty()) driver().fail(CUDA_ERROR_ILLEGAL_ADDRESS, wrong);
    return call.done();
}

EXPORT CUresult cuMemHostRegister_v2(void* at, std::size_t bytes, unsigned) {
    const Call call("cuMemHostRegister", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    driver().registered[reinterpret_cast<std::size_t>(at)] = bytes;
    return call.done();
}

EXPORT CUresult cuMemHostUnregister(void* at) {
    const Call call("cuMemHostUnregister", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    if (driver().registered.erase(reinterpret_cast<std::size_t>(at)) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "memory that was not registered");
    return call.done();
}

EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* at, unsigned) {
    const Call call("cuMemHostGetDevicePointer");
    if (call.refused()) return call.refused();
    if (!driver().pinned(at)) return call.wrong(CUDA_ERROR_INVALID_VALUE, "memory that is not pinned");
    *device = reinterpret_cast<CUdeviceptr>(at);
    return call.done();
}

EXPORT CUresult cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    const Call call("cuMemGetInfo");
    if (call.refused()) return call.refused();
    *total = driver().properties.memory;
    *free = *total - driver().memory.live_bytes(Kind::Device);
    return call.done();
}

// --- copies and sets ----------------------------------------------------------------------------------------------------

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
    return copy("cuMemcpyHtoDAsync", host(to), static_cast<const u8*>(from), bytes, Direction::ToDevice, stream, false);
}
EXPORT CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return copy("cuMemcpyDtoHAsync", static_cast<u8*>(to), host(from), bytes, Direction::ToHost, stream, false);
}
EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return copy("cuMemcpyDtoDAsync", host(to), host(from), bytes, Direction::OnDevice, stream, false);
}
EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, std::size_t bytes) {
    return copy("cuMemcpyHtoD", host(to), static_cast<const u8*>(from), bytes, Direction::ToDevice, nullptr, true);
}
EXPORT CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, std::size_t bytes) {
    return copy("cuMemcpyDtoH", static_cast<u8*>(to), host(from), bytes, Direction::ToHost, nullptr, true);
}
// The device does not make the host wait for this one.
EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {
    return copy("cuMemcpyDtoD", host(to), host(from), bytes, Direction::OnDevice, nullptr, false);
}
EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return copy("cuMemcpyAsync", host(to), host(from), bytes, direction_of(host(to), host(from)), stream, false);
}
EXPORT CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {
    return copy("cuMemcpy", host(to), host(from), bytes, direction_of(host(to), host(from)), nullptr, true);
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, u8 value, std::size_t count, CUstream stream) { return set("cuMemsetD8Async", to, value, 1, count, stream); }
EXPORT CUresult cuMemsetD16Async(CUdeviceptr to, u16 value, std::size_t count, CUstream stream) { return set("cuMemsetD16Async", to, value, 2, count, stream); }
EXPORT CUresult cuMemsetD32Async(CUdeviceptr to, u32 value, std::size_t count, CUstream stream) { return set("cuMemsetD32Async", to, value, 4, count, stream); }
EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, u8 value, std::size_t count) { return set("cuMemsetD8", to, value, 1, count, nullptr); }
EXPORT CUresult cuMemsetD16_v2(CUdeviceptr to, u16 value, std::size_t count) { return set("cuMemsetD16", to, value, 2, count, nullptr); }
EXPORT CUresult cuMemsetD32_v2(CUdeviceptr to, u32 value, std::size_t count) { return set("cuMemsetD32", to, value, 4, count, nullptr); }
