// The calls that the emulator's own tests make.
#pragma once
#include <string>

#include "../driver/api.h"

extern "C" {
CUresult cuInit(unsigned);
CUresult cuDeviceGetName(char*, int, CUdevice);
CUresult cuDeviceGetAttribute(int*, int, CUdevice);
CUresult cuDevicePrimaryCtxRetain(CUcontext*, CUdevice);
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice);
CUresult cuCtxSetCurrent(CUcontext);
CUresult cuCtxSynchronize();
CUresult cuMemAlloc_v2(CUdeviceptr*, std::size_t);
CUresult cuMemAllocAsync(CUdeviceptr*, std::size_t, CUstream);
CUresult cuMemFree_v2(CUdeviceptr);
CUresult cuMemFreeAsync(CUdeviceptr, CUstream);
CUresult cuMemHostAlloc(void**, std::size_t, unsigned);
CUresult cuMemFreeHost(void*);
CUresult cuMemGetInfo_v2(std::size_t*, std::size_t*);
CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void*, std::size_t);
CUresult cuMemcpyDtoH_v2(void*, CUdeviceptr, std::size_t);
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr, const void*, std::size_t, CUstream);
CUresult cuMemcpyDtoHAsync_v2(void*, CUdeviceptr, std::size_t, CUstream);
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, std::size_t, CUstream);
CUresult cuMemsetD8Async(CUdeviceptr, u8, std::size_t, CUstream);
CUresult cuMemsetD32Async(CUdeviceptr, u32, std::size_t, CUstream);
CUresult cuStreamCreate(CUstream*, unsigned);
CUresult cuStreamDestroy_v2(CUstream);
CUresult cuStreamSynchronize(CUstream);
CUresult cuStreamQuery(CUstream);
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned);
CUresult cuStreamBeginCapture_v2(CUstream, int);
CUresult cuStreamEndCapture(CUstream, CUgraph*);
CUresult cuStreamIsCapturing(CUstream, int*);
CUresult cuEventCreate(CUevent*, unsigned);
CUresult cuEventDestroy_v2(CUevent);
CUresult cuEventRecord(CUevent, CUstream);
CUresult cuEventQuery(CUevent);
CUresult cuEventSynchronize(CUevent);
CUresult cuEventElapsedTime(float*, CUevent, CUevent);
CUresult cuGraphGetNodes(CUgraph, void**, std::size_t*);
CUresult cuGraphInstantiateWithFlags(CUgraphExec*, CUgraph, u64);
CUresult cuGraphLaunch(CUgraphExec, CUstream);
CUresult cuGraphDestroy(CUgraph);
CUresult cuGraphExecDestroy(CUgraphExec);
CUresult cuModuleLoadData(CUmodule*, const void*);
CUresult cuModuleUnload(CUmodule);
CUresult cuModuleGetFunction(CUfunction*, CUmodule, const char*);
CUresult cuLinkCreate_v2(unsigned, const int*, void**, CUlinkState*);
CUresult cuLinkAddData_v2(CUlinkState, int, const void*, std::size_t, const char*, unsigned, const int*, void**);
CUresult cuLinkComplete(CUlinkState, void**, std::size_t*);
CUresult cuLinkDestroy(CUlinkState);
CUresult cuFuncSetAttribute(CUfunction, int, int);
CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**);
u64 emulatorLaunches(const char*);
u64 emulatorLive(u32);
u64 emulatorLiveAllocations(u32);
u64 emulatorCopies(u32);
u64 emulatorCopiedBytes(u32);
u64 emulatorCount(u32);
void emulatorReset();
const char* emulatorLastError();
void emulatorOrders(u32, u64);
void emulatorMemory(u64);
u32 emulatorEdgesWhole();
}

// A context with two streams and a module, which ends with everything freed and no error left.
struct Session {
    CUstream stream = nullptr;
    CUstream other = nullptr;
    CUmodule module = nullptr;

    Session();
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    CUfunction function(const char* name) const;
    CUdeviceptr allocate(std::size_t bytes) const;
    float* pin(std::size_t bytes) const;
    // Launches a kernel of the tests with one block of `threads`.
    CUresult launch(const char* name, CUstream on, CUdeviceptr from, CUdeviceptr to, u32 number, u32 count, u32 threads = 32, u32 shared = 0) const;
};

// PTX text with these entries.
struct Declared {
    const char* name;
    u32 bytes;
    u32 threads;
};
std::string ptx(const char* version, const char* target, std::initializer_list<Declared> entries);
