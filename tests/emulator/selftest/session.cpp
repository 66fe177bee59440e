#include <initializer_list>

#include "check.h"
#include "driver.h"
#include "kernels.h"

namespace {
const char* const KERNELS[] = {"probe_add", "probe_block", "probe_big_shared", "wrong_index", "wrong_read", "wrong_before", "wrong_deadlock"};
u32 threads_of(const std::string& name) { return name == "probe_add" || name == "wrong_deadlock" ? 64 : 32; }
}  // namespace

std::string ptx(const char* version, const char* target, std::initializer_list<Declared> entries) {
    std::string text = std::string("// made by hand\n.version ") + version + "\n.target " + target + "\n.address_size 64\n";
    for (const Declared& entry : entries)
        text += std::string(".visible .entry ") + entry.name + "(\n\t.param .align 8 .b8 " + entry.name + "_param_0[" + std::to_string(entry.bytes) +
                "]\n)\n.maxntid " + std::to_string(entry.threads) + ", 1, 1\n{\n\t.reg .b32 %r<2>;\n\tret;\n}\n";
    return text;
}

Session::Session() {
    CUcontext context;
    CHECK(cuInit(0) == CUDA_SUCCESS);
    emulatorReset();
    emulatorOrders(0, 0);
    CHECK(cuDevicePrimaryCtxRetain(&context, 0) == CUDA_SUCCESS);
    CHECK(cuCtxSetCurrent(context) == CUDA_SUCCESS);
    CHECK(cuStreamCreate(&stream, 1) == CUDA_SUCCESS);
    CHECK(cuStreamCreate(&other, 1) == CUDA_SUCCESS);
    std::string text = ptx("8.0", "sm_80", {});
    for (const char* name : KERNELS) {
        const std::string one = ptx("8.0", "sm_80", {{name, sizeof(ProbeArgs), threads_of(name)}});
        text += one.substr(one.find(".visible"));
    }
    CHECK(cuModuleLoadData(&module, text.c_str()) == CUDA_SUCCESS);
}

Session::~Session() {
    cuDevicePrimaryCtxRelease_v2(0);
    CHECK(emulatorLive(0) == 0 && emulatorLive(1) == 0);
    emulatorReset();
}

CUfunction Session::function(const char* name) const {
    CUfunction found = nullptr;
    CHECK(cuModuleGetFunction(&found, module, name) == CUDA_SUCCESS);
    return found;
}

CUdeviceptr Session::allocate(std::size_t bytes) const {
    CUdeviceptr at = 0;
    CHECK(cuMemAlloc_v2(&at, bytes) == CUDA_SUCCESS);
    return at;
}

float* Session::pin(std::size_t bytes) const {
    void* at = nullptr;
    CHECK(cuMemHostAlloc(&at, bytes, 0) == CUDA_SUCCESS);
    return static_cast<float*>(at);
}

CUresult Session::launch(const char* name, CUstream on, CUdeviceptr from, CUdeviceptr to, u32 number, u32 count, u32 threads, u32 shared) const {
    ProbeArgs args{reinterpret_cast<const void*>(from), reinterpret_cast<void*>(to), number, count};
    void* pointers[] = {&args};
    const CUresult result = cuLaunchKernel(function(name), 1, 1, 1, threads, 1, 1, shared, on, pointers, nullptr);
    args = ProbeArgs{};  // the driver must have kept its own
    return result;
}
