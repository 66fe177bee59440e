// Calls that load modules and launch kernels.
#include <cstdio>
#include <cstring>

#include "driver.h"
#include "ptx.h"

using namespace emulator;

namespace {

// What `cuLinkComplete` makes: this, which device and driver it is of, how many bytes follow, and PTX.
const char LINKED[] = "\x7f" "emulated image ";

// The newest PTX that a driver of this version takes.
int newest_ptx(int driver_version) {
    const int minor = driver_version % 1000 / 10;
    if (driver_version < 12000) return 70 + minor;
    if (driver_version >= 13000) return 90 + minor;
    const int versions[] = {80, 81, 82, 83, 84, 85, 85, 86, 87, 88};
    return versions[minor > 9 ? 9 : minor];
}

std::string check_entry(const Entry& entry, const Kernel* kernel) {
    if (!kernel) return "entry " + entry.name + " has no kernel in the emulator's build";
    if (entry.parameters.size() != 1) return "entry " + entry.name + " has " + std::to_string(entry.parameters.size()) + " parameters, not one struct";
    if (entry.parameters[0] != kernel->bytes)
        return "entry " + entry.name + " takes " + std::to_string(entry.parameters[0]) + " bytes, the kernel " + std::to_string(kernel->bytes);
    if (entry.threads != 0 && entry.threads != kernel->threads)
        return "entry " + entry.name + " is for " + std::to_string(entry.threads) + " threads, the kernel for " + std::to_string(kernel->threads);
    return {};
}

CUresult check_ptx(const Ptx& ptx, std::string& wrong) {
    const Properties& p = driver().properties;
    if (ptx.major * 10 + ptx.minor > newest_ptx(p.driver_version)) {
        wrong = "PTX " + std::to_string(ptx.major) + "." + std::to_string(ptx.minor) + " is too new for a driver of version " + std::to_string(p.driver_version);
        return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    }
    if (ptx.target > p.major * 10 + p.minor) {
        wrong = "PTX for sm_" + std::to_string(ptx.target) + " on a device of " + std::to_string(p.major) + "." + std::to_string(p.minor);
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    for (const Entry& entry : ptx.entries) {
        wrong = check_entry(entry, find_kernel(entry.name.c_str()));
        if (!wrong.empty()) return CUDA_ERROR_INVALID_IMAGE;
    }
    return CUDA_SUCCESS;
}

std::string linked(const std::string& ptx) {
    const Properties& p = driver().properties;
    char head[96];
    std::snprintf(head, sizeof head, "%ssm_%d driver %d bytes %zu\n", LINKED, p.major * 10 + p.minor, p.driver_version, ptx.size());
    return head + ptx;
}

// The text in an image that was linked, if it is one of this device, by this driver or an older one, and whole.
CUresult read_linked(const char*& image, std::string& wrong) {
    const Properties& p = driver().properties;
    int target = 0, version = 0, at = 0;
    std::size_t bytes = 0;
    if (std::sscanf(image + sizeof LINKED - 1, "sm_%d driver %d bytes %zu%n", &target, &version, &bytes, &at) != 3) {
        wrong = "the image has no head";
        return CUDA_ERROR_INVALID_IMAGE;
    }
    image += sizeof LINKED - 1 + static_cast<std::size_t>(at) + 1;
    if (target != p.major * 10 + p.minor) {
        wrong = "an image for sm_" + std::to_string(target) + " on a device of " + std::to_string(p.major) + "." + std::to_string(p.minor);
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    if (version > p.driver_version) {
        wrong = "an image by a driver of version " + std::to_string(version) + " is too new for one of version " + std::to_string(p.driver_version);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    if (strnlen(image, bytes + 1) != bytes) {
        wrong = "the image is not whole";
        return CUDA_ERROR_INVALID_IMAGE;
    }
    return CUDA_SUCCESS;
}

CUresult load(const char* image, CUmodule* module, std::string& wrong) {
    if (std::strncmp(image, LINKED, sizeof LINKED - 1) == 0) {
        const CUresult result = read_linked(image, wrong);
        if (result != CUDA_SUCCESS) return result;
    } else if (module) {
        ++driver().counters.assembled;
    }
    if (std::memcmp(image, "\x7f" "ELF", 4) == 0 || static_cast<u8>(image[0]) == 0x50) {
        wrong = "the emulator has no processor for binaries, it takes PTX";
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    Ptx ptx;
    wrong = read_ptx(image, ptx);
    if (!wrong.empty()) return CUDA_ERROR_INVALID_PTX;
    const CUresult result = check_ptx(ptx, wrong);
    if (result != CUDA_SUCCESS || !module) return result;
    Module* made = new Module;
    for (const Entry& entry : ptx.entries) made->functions[entry.name].reset(new Function{find_kernel(entry.name.c_str()), made, 48 << 10});
    driver().modules.insert(made);
    *module = made;
    return CUDA_SUCCESS;
}

// The options that name a buffer for messages.
void write_log(const std::string& text, unsigned count, const int* options, void** values) {
    char* buffer = nullptr;
    std::size_t bytes = 0;
    for (unsigned i = 0; i < count; ++i) {
        if (options[i] == 5) buffer = static_cast<char*>(values[i]);
        if (options[i] == 6) bytes = reinterpret_cast<std::size_t>(values[i]);
    }
    if (buffer && bytes > 0) std::snprintf(buffer, bytes, "%s", text.c_str());
}

bool is_function(CUfunction handle) {
    for (const Module* module : driver().modules)
        for (const auto& entry : module->functions)
            if (entry.second.get() == handle) return true;
    return false;
}

}  // namespace

EXPORT CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned count, const int* options, void** values) {
    const Call call("cuModuleLoadData", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    std::string wrong;
    const CUresult result = load(static_cast<const char*>(image), module, wrong);
    if (result == CUDA_SUCCESS) return call.done();
    write_log(wrong, count, options, values);
    return call.wrong(result, wrong);
}
EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) { return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr); }

EXPORT CUresult cuModuleUnload(CUmodule module) {
    const Call call("cuModuleUnload", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    if (driver().modules.erase(module) == 0) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such module");
    driver().run_all();
    delete module;
    return call.done();
}

EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    const Call call("cuModuleGetFunction");
    if (call.refused()) return call.refused();
    if (driver().modules.count(module) == 0) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such module");
    auto found = module->functions.find(name);
    if (found == module->functions.end()) return call.wrong(CUDA_ERROR_NOT_FOUND, std::string("no entry ") + name);
    *function = found->second.get();
    return call.done();
}

EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr*, std::size_t*, CUmodule, const char* name) {
    const Call call("cuModuleGetGlobal");
    return call.refused() ? call.refused() : call.wrong(CUDA_ERROR_NOT_FOUND, std::string("kernels have no global ") + name);
}

// --- linking ------------------------------------------------------------------------------------------------------------

EXPORT CUresult cuLinkCreate_v2(unsigned, const int*, void**, CUlinkState* state) {
    const Call call("cuLinkCreate", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    *state = *driver().links.insert(new Link).first;
    return call.done();
}

EXPORT CUresult cuLinkAddData_v2(CUlinkState state, int kind, const void* data, std::size_t bytes, const char*, unsigned, const int*, void**) {
    const Call call("cuLinkAddData");
    if (call.refused()) return call.refused();
    if (driver().links.count(state) == 0) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such link");
    if (kind != CU_JIT_INPUT_PTX) return call.wrong(CUDA_ERROR_NOT_SUPPORTED, "only PTX is linked");
    std::string text(static_cast<const char*>(data), bytes);
    if (text.find('\0') != bytes - 1) return call.wrong(CUDA_ERROR_INVALID_PTX, "the text does not end with its zero byte");
    text.pop_back();
    std::string wrong;
    const CUresult result = load(text.c_str(), nullptr, wrong);
    if (result != CUDA_SUCCESS) return call.wrong(result, wrong);
    state->ptx += text;
    return call.done();
}

EXPORT CUresult cuLinkComplete(CUlinkState state, void** image, std::size_t* bytes) {
    const Call call("cuLinkComplete");
    if (call.refused()) return call.refused();
    if (driver().links.count(state) == 0) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such link");
    state->image = linked(state->ptx);
    ++driver().counters.assembled;
    *image = &state->image[0];
    *bytes = state->image.size() + 1;
    return call.done();
}

EXPORT CUresult cuLinkDestroy(CUlinkState state) {
    const Call call("cuLinkDestroy");
    if (call.refused()) return call.refused();
    if (driver().links.erase(state) == 0) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such link");
    std::memset(&state->image[0], 0xff, state->image.size());  // what it made goes with it
    delete state;
    return call.done();
}

// --- functions ----------------------------------------------------------------------------------------------------------

EXPORT CUresult cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
    const Call call("cuFuncGetAttribute");
    if (call.refused()) return call.refused();
    if (!is_function(function)) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such function");
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? static_cast<int>(function->kernel->threads)
             : attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? static_cast<int>(function->most_shared) : 0;
    return call.done();
}

EXPORT CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    const Call call("cuFuncSetAttribute");
    if (call.refused()) return call.refused();
    if (!is_function(function)) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such function");
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return call.done();
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return call.wrong(CUDA_ERROR_INVALID_VALUE, "the attribute cannot be set");
    if (value < 0 || static_cast<u32>(value) > driver().properties.most_shared)
        return call.wrong(CUDA_ERROR_INVALID_VALUE, std::to_string(value) + " bytes of shared memory; the device has " + std::to_string(driver().properties.most_shared));
    function->most_shared = static_cast<u32>(value);
    return call.done();
}

EXPORT CUresult cuFuncSetCacheConfig(CUfunction, int) { return CUDA_SUCCESS; }

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int threads, std::size_t shared) {
    const Call call("cuOccupancyMaxActiveBlocksPerMultiprocessor");
    if (call.refused()) return call.refused();
    if (!is_function(function) || threads <= 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such function, or no threads");
    const int by_threads = 1536 / threads;
    const int by_shared = static_cast<int>((driver().properties.most_shared + 1024) / (shared + 1024));
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    return call.done();
}
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction function, int threads, std::size_t shared, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                               unsigned block_z, unsigned shared, CUstream handle, void** parameters, void** extra) {
    const Call call("cuLaunchKernel");
    if (call.refused()) return call.refused();
    Driver& d = driver();
    Stream* stream = d.stream(handle);
    if (!stream || !is_function(function)) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream or function");
    const std::string name = std::string("kernel ") + function->kernel->name + ": ";
    if (block_y != 1 || block_z != 1) return call.wrong(CUDA_ERROR_INVALID_VALUE, name + "blocks have one dimension here");
    if (extra || !parameters) return call.wrong(CUDA_ERROR_INVALID_VALUE, name + "arguments are given as an array of pointers");
    if (shared > function->most_shared)
        return call.wrong(CUDA_ERROR_INVALID_VALUE, name + std::to_string(shared) + " bytes of shared memory, allowed are " + std::to_string(function->most_shared));
    Op op;
    op.kind = Op::Kind::Kernel;
    op.launch = Launch{function->kernel, nullptr, {grid_x, grid_y, grid_z}, block_x, shared, Order::Ascending, false, 0};
    if (const Failure failure = check_shape(op.launch); failure.cause != Cause::None) return call.wrong(CUDA_ERROR_INVALID_VALUE, failure.text);
    op.args.resize((function->kernel->bytes + sizeof(Chunk) - 1) / sizeof(Chunk));
    std::memcpy(op.args.data(), parameters[0], function->kernel->bytes);
    const CUresult result = d.submit(*stream, std::move(op));
    return result == CUDA_SUCCESS ? call.done() : result;
}
