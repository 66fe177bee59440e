// Arguments of the kernels that test the emulator.
#pragma once
#include "../../../kernels/abi.cuh"

struct ProbeArgs {
    const void* from;
    void* to;
    u32 number;
    u32 count;
};
