// Calls about the driver, the device and its context.
#include <cstdio>
#include <cstring>

#include "driver.h"

using namespace emulator;

EXPORT CUresult cuInit(unsigned) {
    const std::lock_guard<std::recursive_mutex> held(driver().lock);
    if (driver().properties.devices == 0) return CUDA_ERROR_NO_DEVICE;
    driver().initialised = true;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int* version) {
    *version = driver().properties.driver_version;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult result, const char** name) {
    *name = name_of(result);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult result, const char** text) {
    switch (result) {
#define RESULT(name, number, words) \
    case name: *text = words; return CUDA_SUCCESS;
        RESULTS(RESULT)
#undef RESULT
    }
    *text = "an unknown result";
    return CUDA_ERROR_INVALID_VALUE;
}

// --- devices ------------------------------------------------------------------------------------------------------------

EXPORT CUresult cuDeviceGetCount(int* count) {
    const Call call("cuDeviceGetCount", Call::NoContext);
    if (call.refused()) return call.refused();
    *count = driver().properties.devices;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    const Call call("cuDeviceGet", Call::NoContext);
    if (call.refused()) return call.refused();
    if (ordinal < 0 || ordinal >= driver().properties.devices) return call.wrong(CUDA_ERROR_INVALID_DEVICE, "no device " + std::to_string(ordinal));
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
    const Call call("cuDeviceGetName", Call::NoContext);
    if (call.refused()) return call.refused();
    std::snprintf(name, static_cast<std::size_t>(bytes), "emulated device");
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetUuid_v2(u8* uuid, CUdevice device) {
    const Call call("cuDeviceGetUuid", Call::NoContext);
    if (call.refused()) return call.refused();
    std::memset(uuid, 0, 16);
    std::memcpy(uuid, "emulated", 8);
    uuid[15] = static_cast<u8>(device);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetUuid(u8* uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

EXPORT CUresult cuDeviceTotalMem_v2(std::size_t* bytes, CUdevice) {
    const Call call("cuDeviceTotalMem", Call::NoContext);
    if (call.refused()) return call.refused();
    *bytes = driver().properties.memory;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
    const Call call("cuDeviceGetAttribute", Call::NoContext);
    if (call.refused()) return call.refused();
    const Properties& p = driver().properties;
    const int shared = static_cast<int>(p.most_shared);
    switch (attribute) {
        case 1: *value = 1024; break;                  // threads a block
        case 2: case 3: *value = 1024; break;          // block, x and y
        case 4: *value = 64; break;
        case 5: *value = 0x7fffffff; break;            // grid
        case 6: case 7: *value = 65535; break;
        case 8: *value = 48 << 10; break;              // shared memory a block that needs no attribute
        case 9: *value = 64 << 10; break;              // constant memory
        case 10: *value = 32; break;                   // warp
        case 12: case 82: *value = 65536; break;       // registers a block, and a multiprocessor
        case 13: *value = 1000000; break;              // kHz
        case 16: *value = p.multiprocessors; break;
        case 19: case 41: *value = 1; break;           // maps host memory, one range of addresses
        case 31: case 78: *value = 1; break;           // concurrent kernels, priorities
        case 36: *value = 1000000; break;              // kHz of memory
        case 37: *value = 256; break;                  // bits of the memory bus
        case 38: *value = 4 << 20; break;              // L2
        case 39: *value = 1536; break;                 // threads a multiprocessor
        case 40: *value = 2; break;                    // copy engines
        case 75: *value = p.major; break;
        case 76: *value = p.minor; break;
        case 81: *value = shared + 1024; break;        // shared memory a multiprocessor
        case 97: *value = shared; break;               // shared memory a block that asks for it
        case 99: *value = 1; break;                    // pins host memory in place
        case 106: *value = 16; break;                  // blocks a multiprocessor
        case 111: *value = 1024; break;                // shared memory the system takes of a block
        case 115: *value = 1; break;                   // pools
        default: *value = 0;
    }
    return CUDA_SUCCESS;
}

// --- contexts -----------------------------------------------------------------------------------------------------------

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    const Call call("cuDevicePrimaryCtxRetain", Call::NoContext);
    if (call.refused()) return call.refused();
    ++driver().retained;
    *context = PRIMARY;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) {
    const Call call("cuDevicePrimaryCtxRelease", Call::NoContext);
    if (call.refused()) return call.refused();
    if (driver().retained == 0) return call.wrong(CUDA_ERROR_INVALID_CONTEXT, "released more often than retained");
    if (--driver().retained == 0) driver().destroy_context();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice) {
    const Call call("cuDevicePrimaryCtxReset", Call::NoContext);
    if (call.refused()) return call.refused();
    driver().destroy_context();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice, unsigned) { return CUDA_SUCCESS; }

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
    const Call call("cuDevicePrimaryCtxGetState", Call::NoContext);
    if (call.refused()) return call.refused();
    *flags = 0;
    *active = driver().retained > 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
    const Call call("cuCtxGetCurrent", Call::NoContext);
    if (call.refused()) return call.refused();
    *context = current;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    const Call call("cuCtxSetCurrent", Call::NoContext);
    if (call.refused()) return call.refused();
    if (context && (context != PRIMARY || driver().retained == 0)) return call.wrong(CUDA_ERROR_INVALID_CONTEXT, "no such context");
    current = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice* device) {
    const Call call("cuCtxGetDevice");
    if (call.refused()) return call.refused();
    *device = 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize() {
    const Call call("cuCtxSynchronize");
    if (call.refused()) return call.refused();
    for (const std::shared_ptr<Capture>& capture : driver().active) {
        invalidate(*capture);
        return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a stream captures");
    }
    ++driver().counters.synchronisations;
    driver().run_all();
    return call.done();
}

EXPORT CUresult cuCtxSetFlags(unsigned) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxSetLimit(int, std::size_t) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetLimit(std::size_t* value, int) {
    *value = 1024;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetCacheConfig(int) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetCacheConfig(int* config) {
    *config = 0;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuProfilerStart() { return CUDA_SUCCESS; }
EXPORT CUresult cuProfilerStop() { return CUDA_SUCCESS; }
