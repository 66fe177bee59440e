// Streams, events, graphs and modules of the emulated driver.
#include <cmath>
#include <thread>
#include <vector>

#include "check.h"
#include "driver.h"
#include "kernels.h"

namespace {

// Adds 1 on one stream and copies on the other; says whether the copy saw it.
bool seen(u64 seed, bool ordered) {
    Session s;
    emulatorOrders(0, seed);
    const CUdeviceptr a = s.allocate(128);
    float* pinned = s.pin(4);
    CUevent event = nullptr;
    CHECK(cuEventCreate(&event, 0) == CUDA_SUCCESS);
    CHECK(cuMemsetD32Async(a, 0, 32, s.stream) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
    CHECK(s.launch("probe_add", s.stream, 0, a, 1, 32) == CUDA_SUCCESS);
    CHECK(cuEventRecord(event, s.stream) == CUDA_SUCCESS);
    if (ordered) CHECK(cuStreamWaitEvent(s.other, event, 0) == CUDA_SUCCESS);
    CHECK(cuMemcpyDtoHAsync_v2(pinned, a, 4, s.other) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.other) == CUDA_SUCCESS);
    return *pinned == 1.0f;
}

}  // namespace

TEST(work_on_the_wrong_stream_shows) {
    u32 unordered = 0;
    for (u64 seed = 0; seed < 32; ++seed) {
        CHECK(seen(seed, true));
        unordered += seen(seed, false);
    }
    CHECK(unordered > 0 && unordered < 32);
}

TEST(events_are_passed_with_the_work_before_them) {
    Session s;
    const CUdeviceptr a = s.allocate(128);
    CUevent first = nullptr, second = nullptr;
    float milliseconds = -1;
    CHECK(cuEventCreate(&first, 0) == CUDA_SUCCESS && cuEventCreate(&second, 0) == CUDA_SUCCESS);
    CHECK(cuEventQuery(first) == CUDA_SUCCESS);
    CHECK(cuEventRecord(first, s.stream) == CUDA_SUCCESS);
    CHECK(cuMemsetD32Async(a, 0, 32, s.stream) == CUDA_SUCCESS);
    CHECK(cuEventRecord(second, s.stream) == CUDA_SUCCESS);
    CHECK(cuEventElapsedTime(&milliseconds, first, second) == CUDA_ERROR_NOT_READY);
    CHECK(cuEventQuery(second) == CUDA_ERROR_NOT_READY);
    u32 queries = 0;
    while (cuEventQuery(second) == CUDA_ERROR_NOT_READY && queries < 100) ++queries;
    CHECK(queries < 100);
    CHECK(cuEventSynchronize(second) == CUDA_SUCCESS);
    CHECK(cuEventElapsedTime(&milliseconds, first, second) == CUDA_SUCCESS && milliseconds >= 0);
    CHECK(cuStreamQuery(s.stream) == CUDA_SUCCESS);
    CHECK(cuEventDestroy_v2(first) == CUDA_SUCCESS);
    CHECK(cuEventDestroy_v2(first) == CUDA_ERROR_INVALID_HANDLE);
}

TEST(a_stream_that_goes_does_its_work) {
    Session s;
    float* pinned = s.pin(4);
    const CUdeviceptr a = s.allocate(4);
    CHECK(cuMemsetD32Async(a, 0, 1, s.stream) == CUDA_SUCCESS);
    CHECK(cuMemcpyDtoHAsync_v2(pinned, a, 4, s.stream) == CUDA_SUCCESS);
    CHECK(cuStreamDestroy_v2(s.stream) == CUDA_SUCCESS);
    CHECK(*pinned == 0.0f);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_INVALID_HANDLE);
}

TEST(the_legacy_stream_takes_turns_with_blocking_streams) {
    for (u64 seed = 0; seed < 16; ++seed) {
        Session s;
        emulatorOrders(0, seed);
        CUstream blocking = nullptr;
        float value = 0;
        const CUdeviceptr a = s.allocate(128);
        CHECK(cuStreamCreate(&blocking, 0) == CUDA_SUCCESS);
        CHECK(cuMemsetD32Async(a, 0, 32, nullptr) == CUDA_SUCCESS);
        CHECK(s.launch("probe_add", blocking, 0, a, 1, 32) == CUDA_SUCCESS);
        CHECK(s.launch("probe_add", nullptr, 0, a, 1, 32) == CUDA_SUCCESS);
        CHECK(cuMemcpyDtoH_v2(&value, a, 4) == CUDA_SUCCESS);
        CHECK(value == 2.0f);
    }
}

TEST(a_deadlock_is_a_launch_that_timed_out) {
    Session s;
    CHECK(s.launch("wrong_deadlock", s.stream, 0, 0, 0, 0, 64) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_LAUNCH_TIMEOUT);
}

// --- shared memory and modules ------------------------------------------------------------------------------------------

TEST(shared_memory_above_48_kb_needs_the_attribute) {
    Session s;
    const u32 much = 60 << 10;
    int most = 0;
    CHECK(s.launch("probe_big_shared", s.stream, 0, 0, 48 << 10, 0, 32, 48 << 10) == CUDA_SUCCESS);
    CHECK(s.launch("probe_big_shared", s.stream, 0, 0, much, 0, 32, much) == CUDA_ERROR_INVALID_VALUE);
    CHECK_SAYS(emulatorLastError(), "allowed are 49152");
    CHECK(cuDeviceGetAttribute(&most, 97, 0) == CUDA_SUCCESS);
    CHECK(most == 99 << 10);
    CHECK(cuFuncSetAttribute(s.function("probe_big_shared"), 8, most + 1) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuFuncSetAttribute(s.function("probe_big_shared"), 8, most) == CUDA_SUCCESS);
    CHECK(s.launch("probe_big_shared", s.stream, 0, 0, much, 0, 32, much) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
}

TEST(modules_must_fit_the_kernels_and_the_driver) {
    Session s;
    CUmodule module = nullptr;
    CUfunction function = nullptr;
    const auto load = [&](const std::string& text) { return cuModuleLoadData(&module, text.c_str()); };
    CHECK(load(ptx("7.0", "sm_80", {{"probe_add", 24, 64}})) == CUDA_SUCCESS);
    CHECK(cuModuleGetFunction(&function, module, "probe_block") == CUDA_ERROR_NOT_FOUND);
    CHECK(cuModuleUnload(module) == CUDA_SUCCESS);
    CHECK(load(ptx("7.0", "sm_80", {{"probe_absent", 24, 64}})) == CUDA_ERROR_INVALID_IMAGE);
    CHECK_SAYS(emulatorLastError(), "entry probe_absent has no kernel");
    CHECK(load(ptx("7.0", "sm_80", {{"probe_add", 32, 64}})) == CUDA_ERROR_INVALID_IMAGE);
    CHECK_SAYS(emulatorLastError(), "takes 32 bytes, the kernel 24");
    CHECK(load(ptx("7.0", "sm_80", {{"probe_add", 24, 128}})) == CUDA_ERROR_INVALID_IMAGE);
    CHECK(load(ptx("8.3", "sm_80", {})) == CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    CHECK_SAYS(emulatorLastError(), "PTX 8.3 is too new for a driver of version 12020");
    CHECK(load(ptx("8.0", "sm_90", {})) == CUDA_ERROR_NO_BINARY_FOR_GPU);
    CHECK(load("\x7f" "ELF") == CUDA_ERROR_NO_BINARY_FOR_GPU);
    CHECK(load("no text of this kind") == CUDA_ERROR_INVALID_PTX);
}

TEST(linked_images_load) {
    Session s;
    const std::string text = ptx("8.0", "sm_80", {{"probe_add", 24, 64}});
    CUlinkState link = nullptr;
    CUmodule module = nullptr;
    void* image = nullptr;
    std::size_t bytes = 0;
    const auto load = [&](const std::string& text) { return cuModuleLoadData(&module, text.c_str()); };
    const u64 before = emulatorCount(5);
    CHECK(cuLinkCreate_v2(0, nullptr, nullptr, &link) == CUDA_SUCCESS);
    CHECK(cuLinkAddData_v2(link, 1, text.c_str(), text.size() + 1, "text", 0, nullptr, nullptr) == CUDA_SUCCESS);
    CHECK(cuLinkComplete(link, &image, &bytes) == CUDA_SUCCESS);
    const std::vector<char> kept(static_cast<char*>(image), static_cast<char*>(image) + bytes);
    CHECK(cuLinkDestroy(link) == CUDA_SUCCESS);
    CHECK(cuModuleLoadData(&module, kept.data()) == CUDA_SUCCESS);
    CHECK(emulatorCount(5) == before + 1);
    CHECK(load(text) == CUDA_SUCCESS && emulatorCount(5) == before + 2);
}

TEST(what_was_not_linked_here_is_refused) {
    Session s;
    const std::string text = ptx("8.0", "sm_80", {{"probe_add", 24, 64}});
    const std::string size = std::to_string(text.size());
    CUmodule module = nullptr;
    const auto load = [&](const std::string& text) { return cuModuleLoadData(&module, text.c_str()); };
    const std::string head = "\x7f" "emulated image ";
    CHECK(load(head + "sm_86 driver 12020 bytes " + size + "\n" + text) == CUDA_SUCCESS);
    CHECK(load(head + "sm_86 driver 11080 bytes " + size + "\n" + text) == CUDA_SUCCESS);
    CHECK(load(head + "sm_90 driver 12020 bytes " + size + "\n" + text) == CUDA_ERROR_NO_BINARY_FOR_GPU);
    CHECK(load(head + "sm_86 driver 13000 bytes " + size + "\n" + text) == CUDA_ERROR_INVALID_IMAGE);
    CHECK_SAYS(emulatorLastError(), "too new");
    CHECK(load(head + "sm_86 driver 12020 bytes " + size + "\n" + text.substr(1)) == CUDA_ERROR_INVALID_IMAGE);
    CHECK(load(head) == CUDA_ERROR_INVALID_IMAGE);
    CUlinkState link = nullptr;
    CHECK(cuLinkCreate_v2(0, nullptr, nullptr, &link) == CUDA_SUCCESS);
    CHECK(cuLinkAddData_v2(link, 0, text.c_str(), text.size() + 1, "text", 0, nullptr, nullptr) == CUDA_ERROR_NOT_SUPPORTED);
    CHECK(cuLinkAddData_v2(link, 1, text.c_str(), text.size(), "text", 0, nullptr, nullptr) == CUDA_ERROR_INVALID_PTX);
    CHECK(cuLinkDestroy(link) == CUDA_SUCCESS);
}

// --- captures -----------------------------------------------------------------------------------------------------------

TEST(graphs_replay_what_was_captured) {
    Session s;
    const CUdeviceptr a = s.allocate(128);
    float* from = s.pin(128);
    float* to = s.pin(128);
    CUgraph graph = nullptr;
    CUgraphExec exec = nullptr;
    std::size_t nodes = 0;
    int status = 0;
    CHECK(cuStreamBeginCapture_v2(s.stream, 1) == CUDA_SUCCESS);
    CHECK(cuMemcpyHtoDAsync_v2(a, from, 128, s.stream) == CUDA_SUCCESS);
    CHECK(s.launch("probe_add", s.stream, 0, a, 2, 16) == CUDA_SUCCESS);
    CHECK(cuMemsetD8Async(a, 0, 4, s.stream) == CUDA_SUCCESS);
    CHECK(cuMemcpyDtoHAsync_v2(to, a, 128, s.stream) == CUDA_SUCCESS);
    CHECK(cuStreamIsCapturing(s.stream, &status) == CUDA_SUCCESS && status == 1);
    CHECK(cuStreamEndCapture(s.stream, &graph) == CUDA_SUCCESS);
    CHECK(emulatorLaunches(nullptr) == 0);
    CHECK(cuGraphGetNodes(graph, nullptr, &nodes) == CUDA_SUCCESS && nodes == 4);
    CHECK(cuGraphInstantiateWithFlags(&exec, graph, 0) == CUDA_SUCCESS);
    CHECK(cuGraphDestroy(graph) == CUDA_SUCCESS);
    for (u32 turn = 0; turn < 3; ++turn) {
        for (u32 i = 0; i < 32; ++i) from[i] = static_cast<float>(turn * 100 + i);
        CHECK(cuGraphLaunch(exec, s.stream) == CUDA_SUCCESS);
        CHECK(std::isnan(to[1]));
        CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
        for (u32 i = 0; i < 32; ++i) CHECK(to[i] == (i == 0 ? 0.0f : static_cast<float>(turn * 100 + i + (i < 16 ? 2 : 0))));
    }
    CHECK(emulatorCount(0) == 3 && emulatorCount(1) == 1 && emulatorLaunches("probe_add") == 3);
    CHECK(cuGraphLaunch(exec, s.stream) == CUDA_SUCCESS);
    from[5] = -1.0f;
    CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_ILLEGAL_STATE);
    CHECK_SAYS(emulatorLastError(), "the host wrote to pinned memory");
}

TEST(a_graph_that_uses_freed_memory_is_found) {
    Session s;
    const CUdeviceptr a = s.allocate(128);
    CUgraph graph = nullptr;
    CUgraphExec exec = nullptr;
    CHECK(cuStreamBeginCapture_v2(s.stream, 1) == CUDA_SUCCESS);
    CHECK(s.launch("probe_add", s.stream, 0, a, 2, 16) == CUDA_SUCCESS);
    CHECK(cuStreamEndCapture(s.stream, &graph) == CUDA_SUCCESS);
    CHECK(cuGraphInstantiateWithFlags(&exec, graph, 0) == CUDA_SUCCESS);
    CHECK(cuMemFree_v2(a) == CUDA_SUCCESS);
    CHECK(cuGraphLaunch(exec, s.stream) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_ILLEGAL_ADDRESS);
}

namespace {

// What a call gives while a stream captures, and that the capture is lost.
template <class Wrong>
void refused_in_capture(CUresult expected, Wrong wrong) {
    Session s;
    const CUdeviceptr a = s.allocate(128);
    CUgraph graph = nullptr;
    CUevent event = nullptr;
    CHECK(cuEventCreate(&event, 0) == CUDA_SUCCESS && cuEventRecord(event, s.other) == CUDA_SUCCESS);
    CHECK(cuStreamBeginCapture_v2(s.stream, 1) == CUDA_SUCCESS);
    CHECK(wrong(s, a, event) == expected);
    CHECK(cuMemsetD8Async(a, 0, 4, s.stream) == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    CHECK(cuStreamEndCapture(s.stream, &graph) == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    CHECK(graph == nullptr);
    CHECK(cuMemsetD8Async(a, 0, 4, s.stream) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
}

}  // namespace

TEST(what_no_capture_allows_is_refused_and_ends_it) {
    float value = 0;
    const CUresult unsupported = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    refused_in_capture(unsupported, [](Session& s, CUdeviceptr, CUevent) { return cuStreamSynchronize(s.stream); });
    refused_in_capture(unsupported, [](Session&, CUdeviceptr, CUevent) { return cuCtxSynchronize(); });
    refused_in_capture(unsupported, [](Session& s, CUdeviceptr, CUevent) { return cuStreamQuery(s.stream); });
    refused_in_capture(unsupported, [](Session&, CUdeviceptr, CUevent) {
        CUdeviceptr made = 0;
        return cuMemAlloc_v2(&made, 16);
    });
    refused_in_capture(unsupported, [](Session&, CUdeviceptr a, CUevent) { return cuMemFree_v2(a); });
    refused_in_capture(unsupported, [&](Session&, CUdeviceptr a, CUevent) { return cuMemcpyDtoH_v2(&value, a, 4); });
    refused_in_capture(unsupported, [&](Session& s, CUdeviceptr a, CUevent) { return cuMemcpyHtoDAsync_v2(a, &value, 4, s.stream); });
    refused_in_capture(unsupported, [](Session&, CUdeviceptr, CUevent event) { return cuEventSynchronize(event); });
    refused_in_capture(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, [](Session& s, CUdeviceptr, CUevent event) { return cuStreamWaitEvent(s.stream, event, 0); });
}

TEST(other_threads_go_on_while_a_thread_captures) {
    Session s;
    CUgraph graph = nullptr;
    CHECK(cuStreamBeginCapture_v2(s.stream, 1) == CUDA_SUCCESS);
    CUresult allocated = CUDA_ERROR_NOT_FOUND, ended = CUDA_SUCCESS;
    std::thread([&] {
        CUcontext context;
        CUdeviceptr a = 0;
        cuDevicePrimaryCtxRetain(&context, 0);
        cuCtxSetCurrent(context);
        allocated = cuMemAlloc_v2(&a, 16);
        ended = cuStreamEndCapture(s.stream, &graph);
        cuDevicePrimaryCtxRelease_v2(0);
    }).join();
    CHECK(allocated == CUDA_SUCCESS);
    CHECK(ended == CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    CHECK(cuStreamEndCapture(s.stream, &graph) == CUDA_SUCCESS);
}

TEST(streams_join_a_capture_by_events) {
    for (u64 seed = 0; seed < 8; ++seed) {
        Session s;
        emulatorOrders(0, seed);
        CUevent fork = nullptr, back = nullptr;
        CUgraph graph = nullptr;
        CUgraphExec exec = nullptr;
        float value = 0;
        const CUdeviceptr a = s.allocate(128), b = s.allocate(128);
        CHECK(cuEventCreate(&fork, 2) == CUDA_SUCCESS && cuEventCreate(&back, 2) == CUDA_SUCCESS);
        CHECK(cuStreamBeginCapture_v2(s.stream, 1) == CUDA_SUCCESS);
        CHECK(cuMemsetD32Async(a, 0, 32, s.stream) == CUDA_SUCCESS);
        CHECK(cuEventRecord(fork, s.stream) == CUDA_SUCCESS);
        CHECK(cuStreamWaitEvent(s.other, fork, 0) == CUDA_SUCCESS);
        CHECK(cuMemcpyDtoDAsync_v2(b, a, 128, s.other) == CUDA_SUCCESS);
        CHECK(cuEventRecord(back, s.other) == CUDA_SUCCESS);
        CHECK(cuStreamWaitEvent(s.stream, back, 0) == CUDA_SUCCESS);
        CHECK(s.launch("probe_add", s.stream, 0, b, 1, 32) == CUDA_SUCCESS);
        CHECK(cuStreamEndCapture(s.stream, &graph) == CUDA_SUCCESS);
        CHECK(cuEventSynchronize(back) == CUDA_ERROR_CAPTURED_EVENT);
        CHECK(cuGraphInstantiateWithFlags(&exec, graph, 0) == CUDA_SUCCESS);
        CHECK(cuGraphLaunch(exec, s.other) == CUDA_SUCCESS);
        CHECK(cuMemcpyDtoHAsync_v2(&value, b, 4, s.other) == CUDA_SUCCESS);
        CHECK(value == 1.0f);
    }
}

TEST(work_of_a_forked_stream_must_be_joined) {
    Session s;
    CUevent fork = nullptr;
    CUgraph graph = nullptr;
    const CUdeviceptr a = s.allocate(128);
    CHECK(cuEventCreate(&fork, 2) == CUDA_SUCCESS);
    CHECK(cuStreamBeginCapture_v2(s.stream, 1) == CUDA_SUCCESS);
    CHECK(cuEventRecord(fork, s.stream) == CUDA_SUCCESS);
    CHECK(cuStreamWaitEvent(s.other, fork, 0) == CUDA_SUCCESS);
    CHECK(cuMemsetD32Async(a, 0, 32, s.other) == CUDA_SUCCESS);
    CHECK(cuStreamEndCapture(s.stream, &graph) == CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
}
