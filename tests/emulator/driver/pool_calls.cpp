// Calls about pools of memory. A pool keeps nothing here: what is freed is gone.
#include "driver.h"

using namespace emulator;

EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice) {
    const Call call("cuDeviceGetDefaultMemPool", Call::NoContext);
    if (call.refused()) return call.refused();
    *pool = &driver().default_pool;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }
EXPORT CUresult cuDeviceSetMemPool(CUdevice, CUmemoryPool) { return CUDA_SUCCESS; }

EXPORT CUresult cuMemPoolCreate(CUmemoryPool* pool, const void*) {
    const Call call("cuMemPoolCreate");
    if (call.refused()) return call.refused();
    *pool = *driver().pools.insert(new Pool).first;
    return call.done();
}

EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    const Call call("cuMemPoolDestroy");
    if (call.refused()) return call.refused();
    if (driver().pools.erase(pool) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such pool");
    delete pool;
    return call.done();
}

EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void* value) {
    const Call call("cuMemPoolSetAttribute");
    if (call.refused()) return call.refused();
    if (pool != &driver().default_pool && driver().pools.count(pool) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such pool");
    if (attribute == 4) pool->threshold = *static_cast<u64*>(value);
    return call.done();
}

EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void* value) {
    const Call call("cuMemPoolGetAttribute");
    if (call.refused()) return call.refused();
    if (pool != &driver().default_pool && driver().pools.count(pool) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such pool");
    if (attribute <= 3) *static_cast<int*>(value) = 1;
    else if (attribute == 4) *static_cast<u64*>(value) = pool->threshold;
    else *static_cast<u64*>(value) = driver().memory.live_bytes(Kind::Device);
    return call.done();
}

EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool, std::size_t) {
    const Call call("cuMemPoolTrimTo");
    return call.refused() ? call.refused() : call.done();
}
