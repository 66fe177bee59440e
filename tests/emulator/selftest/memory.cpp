// Memory, copies and streams of the emulated driver.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "driver.h"

TEST(copies_and_kernels_work) {
    Session s;
    const std::vector<float> ones(32, 1.0f);
    std::vector<float> back(32);
    const CUdeviceptr a = s.allocate(128), b = s.allocate(128);
    CHECK(cuMemcpyHtoDAsync_v2(a, ones.data(), 128, s.stream) == CUDA_SUCCESS);
    CHECK(s.launch("probe_add", s.stream, 0, a, 4, 32) == CUDA_SUCCESS);
    CHECK(cuMemcpyDtoDAsync_v2(b, a, 128, s.stream) == CUDA_SUCCESS);
    CHECK(emulatorLaunches(nullptr) == 0);  // nothing has waited for it
    CHECK(cuMemcpyDtoHAsync_v2(back.data(), b, 128, s.stream) == CUDA_SUCCESS);
    for (float value : back) CHECK(value == 5.0f);
    CHECK(emulatorLaunches("probe_add") == 1 && emulatorLaunches("probe_block") == 0);
    CHECK(emulatorCopies(0) == 1 && emulatorCopies(1) == 1 && emulatorCopies(2) == 1 && emulatorCopiedBytes(0) == 128);
    CHECK(cuMemsetD32Async(b, 0x40000000, 32, s.stream) == CUDA_SUCCESS);
    CHECK(cuMemsetD8Async(b, 0, 4, s.stream) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
    CHECK(cuMemcpyDtoH_v2(back.data(), b, 128) == CUDA_SUCCESS);
    CHECK(back[0] == 0.0f && back[1] == 2.0f && back[31] == 2.0f);
    CHECK(cuMemFree_v2(a) == CUDA_SUCCESS && cuMemFree_v2(b) == CUDA_SUCCESS);
    CHECK(emulatorLive(0) == 0 && emulatorLiveAllocations(0) == 0);
}

TEST(fresh_memory_is_nan) {
    Session s;
    std::vector<float> back(32);
    CHECK(cuMemcpyDtoH_v2(back.data(), s.allocate(128), 128) == CUDA_SUCCESS);
    for (float value : back) CHECK(std::isnan(value));
}

TEST(a_kernel_that_reads_behind_an_allocation_fails_and_the_error_sticks) {
    Session s;
    const CUdeviceptr a = s.allocate(112), b = s.allocate(128);
    CHECK(s.launch("wrong_read", s.stream, a, b, 27, 0) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
    CHECK(s.launch("wrong_read", s.stream, a, b, 28, 0) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_ILLEGAL_ADDRESS);
    CHECK_SAYS(emulatorLastError(), "kernel wrong_read, block (0, 0, 0), thread ");
    CHECK_SAYS(emulatorLastError(), "byte 112 of an allocation of 112 bytes (behind its end)");
    CUdeviceptr c;
    CHECK(cuMemAlloc_v2(&c, 16) == CUDA_ERROR_ILLEGAL_ADDRESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_ILLEGAL_ADDRESS);
}

TEST(writes_that_no_page_guards_are_found_later) {
    Session s;
    const CUdeviceptr a = s.allocate(100);
    CHECK(emulatorEdgesWhole() == 1);
    CHECK(s.launch("wrong_index", s.stream, 0, a, 25, 0) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
    CHECK(emulatorEdgesWhole() == 0);
    CHECK_SAYS(emulatorLastError(), "behind the end of an allocation of 100 bytes");
    CHECK(cuMemFree_v2(a) == CUDA_ERROR_ILLEGAL_ADDRESS);
}

TEST(writes_before_an_allocation_are_found) {
    Session s;
    const CUdeviceptr a = s.allocate(64);
    CHECK(s.launch("wrong_before", s.stream, 0, a, 0, 0) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
    CHECK(cuMemFree_v2(a) == CUDA_ERROR_ILLEGAL_ADDRESS);
    CHECK_SAYS(emulatorLastError(), "the bytes before an allocation of 64");
}

TEST(copies_out_of_bounds_are_refused) {
    Session s;
    std::vector<float> host(64, 1.0f);
    const CUdeviceptr a = s.allocate(128);
    CHECK(cuMemcpyHtoD_v2(a, host.data(), 132) == CUDA_ERROR_INVALID_VALUE);
    CHECK_SAYS(emulatorLastError(), "132 bytes from byte 0 of an allocation of 128");
    CHECK(cuMemcpyDtoH_v2(host.data(), a + 64, 68) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyHtoD_v2(12345, host.data(), 4) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemsetD32Async(a, 0, 33, s.stream) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyHtoD_v2(a, host.data(), 128) == CUDA_SUCCESS);
}

TEST(use_after_free_is_found) {
    {
        Session s;
        float value;
        const CUdeviceptr a = s.allocate(128);
        CHECK(cuMemFree_v2(a) == CUDA_SUCCESS);
        CHECK(cuMemcpyDtoH_v2(&value, a, 4) == CUDA_ERROR_INVALID_VALUE);
        CHECK_SAYS(emulatorLastError(), "a freed allocation");
        CHECK(cuMemFree_v2(a) == CUDA_ERROR_INVALID_VALUE);
        CHECK_SAYS(emulatorLastError(), "freed twice");
        CHECK(s.launch("probe_add", s.stream, 0, a, 1, 32) == CUDA_SUCCESS);
        CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_ILLEGAL_ADDRESS);
        CHECK_SAYS(emulatorLastError(), "byte 0 of a freed allocation of 128 bytes");
    }
    // The kernel was launched before the free, which waits for nothing.
    Session s;
    const CUdeviceptr a = s.allocate(128);
    CHECK(s.launch("probe_add", s.stream, 0, a, 1, 32) == CUDA_SUCCESS);
    CHECK(cuMemFree_v2(a) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_ILLEGAL_ADDRESS);
}

TEST(memory_of_a_stream_comes_and_goes_with_its_work) {
    Session s;
    CUdeviceptr a = 0;
    float value = 0;
    CHECK(cuMemAllocAsync(&a, 128, s.stream) == CUDA_SUCCESS);
    CHECK(cuMemsetD32Async(a, 0x3f800000, 32, s.stream) == CUDA_SUCCESS);
    CHECK(s.launch("probe_add", s.stream, 0, a, 1, 32) == CUDA_SUCCESS);
    CHECK(cuMemcpyDtoHAsync_v2(&value, a, 4, s.stream) == CUDA_SUCCESS);
    CHECK(value == 2.0f);
    CHECK(s.launch("probe_add", s.stream, 0, a, 1, 32) == CUDA_SUCCESS);
    CHECK(cuMemFreeAsync(a, s.stream) == CUDA_SUCCESS);
    CHECK(cuMemcpyDtoHAsync_v2(&value, a, 4, s.stream) == CUDA_ERROR_INVALID_VALUE);
    CHECK_SAYS(emulatorLastError(), "use after free");
    CHECK(emulatorLive(0) == 128);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
    CHECK(emulatorLive(0) == 0);
}

TEST(memory_that_another_stream_has_not_yet_made_is_out_of_reach) {
    u32 found = 0;
    for (u64 seed = 0; seed < 16; ++seed) {
        Session s;
        emulatorOrders(0, seed);
        CUdeviceptr a = 0;
        CHECK(cuMemAllocAsync(&a, 128, s.stream) == CUDA_SUCCESS);
        CHECK(s.launch("wrong_index", s.other, 0, a, 0, 0) == CUDA_SUCCESS);
        found += cuStreamSynchronize(s.other) == CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    CHECK(found > 0);
}

TEST(a_host_that_writes_what_is_being_copied_is_found) {
    {
        Session s;
        const CUdeviceptr a = s.allocate(128);
        float* pinned = s.pin(128);
        std::memset(pinned, 0, 128);
        CHECK(cuMemcpyHtoDAsync_v2(a, pinned, 128, s.stream) == CUDA_SUCCESS);
        CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
        pinned[3] = 1.0f;  // the copy is over
        CHECK(cuMemcpyHtoDAsync_v2(a, pinned, 128, s.stream) == CUDA_SUCCESS);
        pinned[3] = 2.0f;
        CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_ILLEGAL_STATE);
        CHECK_SAYS(emulatorLastError(), "the host wrote to pinned memory while a copy");
    }
    // Memory that is not pinned is read before the call returns.
    Session s;
    const CUdeviceptr a = s.allocate(4);
    float value = 1.0f;
    CHECK(cuMemcpyHtoDAsync_v2(a, &value, 4, s.stream) == CUDA_SUCCESS);
    value = 2.0f;
    CHECK(cuMemcpyDtoHAsync_v2(&value, a, 4, s.stream) == CUDA_SUCCESS);
    CHECK(value == 1.0f);
}

TEST(a_host_that_reads_too_early_sees_nan) {
    Session s;
    const CUdeviceptr a = s.allocate(4);
    float* pinned = s.pin(4);
    *pinned = 3.0f;
    CHECK(cuMemsetD32Async(a, 0, 1, s.stream) == CUDA_SUCCESS);
    CHECK(cuMemcpyDtoHAsync_v2(pinned, a, 4, s.stream) == CUDA_SUCCESS);
    CHECK(std::isnan(*pinned));
    CHECK(cuStreamSynchronize(s.stream) == CUDA_SUCCESS);
    CHECK(*pinned == 0.0f);
}

TEST(pinned_memory_freed_under_a_copy_is_found) {
    Session s;
    const CUdeviceptr a = s.allocate(4);
    float* pinned = s.pin(4);
    CHECK(cuMemcpyHtoDAsync_v2(a, pinned, 4, s.stream) == CUDA_SUCCESS);
    CHECK(cuMemFreeHost(pinned) == CUDA_SUCCESS);
    CHECK(cuStreamSynchronize(s.stream) == CUDA_ERROR_ILLEGAL_ADDRESS);
}

TEST(more_than_the_device_has_is_refused) {
    Session s;
    std::size_t free = 0, total = 0;
    emulatorMemory(1000);
    const CUdeviceptr a = s.allocate(600);
    CHECK(cuMemGetInfo_v2(&free, &total) == CUDA_SUCCESS);
    CHECK(free == 400 && total == 1000);
    CUdeviceptr b = 0;
    CHECK(cuMemAlloc_v2(&b, 401) == CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(cuMemAlloc_v2(&b, 400) == CUDA_SUCCESS);
    // What waits to be freed makes room.
    CHECK(cuMemFreeAsync(a, s.stream) == CUDA_SUCCESS);
    CHECK(cuMemAlloc_v2(&b, 600) == CUDA_SUCCESS);
    emulatorMemory(512 << 20);
}

TEST(a_thread_without_a_context_is_refused) {
    Session s;
    CHECK(cuCtxSetCurrent(nullptr) == CUDA_SUCCESS);
    CUdeviceptr a = 0;
    CHECK(cuMemAlloc_v2(&a, 16) == CUDA_ERROR_INVALID_CONTEXT);
}
