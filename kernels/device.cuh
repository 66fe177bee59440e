// What kernels are written in beside plain C++. Every wrapper has two sides: inline PTX and builtins for NVRTC, with no header
// of the toolkit, for compute_80 and later; and the emulated device of `tests/emulator/shim.h` for the host's compiler.
//
// Kernels are compiled with `--fmad=false` and `-ffp-contract=off`: what is fused is written `fused`, so that one function gives
// the same bits wherever it is inlined.
#pragma once
#include "abi.cuh"

#ifdef __CUDACC_RTC__

#define DEVICE static __device__ __forceinline__

// Begins the definition of a kernel for blocks of `threads` threads; its parameter is `args`.
#define KERNEL(name, threads, Args) extern "C" __global__ void __launch_bounds__(threads) name(const Args args)

// The same where so many blocks must fit a multiprocessor at once: their registers are few enough for it.
#define KERNEL_RESIDENT(name, threads, blocks, Args) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args args)

constexpr u32 FULL_MASK = 0xffffffffu;

// Sixteen bytes, the unit of every wide load and store.
struct alignas(16) Piece {
    u32 word[4];
};

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 block_index_x() { return blockIdx.x; }
DEVICE u32 block_index_y() { return blockIdx.y; }
DEVICE u32 block_index_z() { return blockIdx.z; }
DEVICE u32 grid_x() { return gridDim.x; }
DEVICE u32 grid_y() { return gridDim.y; }
DEVICE u32 grid_z() { return gridDim.z; }
DEVICE u32 block_threads() { return blockDim.x; }

DEVICE void block_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(FULL_MASK); }

template <class T>
DEVICE T shuffle_xor(T value, u32 mask) { return __shfl_xor_sync(FULL_MASK, value, mask); }
template <class T>
DEVICE T shuffle(T value, u32 lane) { return __shfl_sync(FULL_MASK, value, lane); }
template <class T>
DEVICE T shuffle_down(T value, u32 lanes) { return __shfl_down_sync(FULL_MASK, value, lanes); }
DEVICE u32 lanes_where(bool holds) { return __ballot_sync(FULL_MASK, holds); }
DEVICE bool any_lane(bool holds) { return __any_sync(FULL_MASK, holds) != 0; }
DEVICE u32 count_bits(u32 bits) { return static_cast<u32>(__popc(bits)); }

// Adds to a counter in shared memory. What it counts to does not depend on who comes first.
DEVICE void add_shared(u32* counter, u32 count) { atomicAdd(counter, count); }

// The dynamic shared memory of the block, aligned to 16 bytes. Kernels have no other.
DEVICE u8* shared_bytes() {
    extern __shared__ Piece shared_memory[];
    return reinterpret_cast<u8*>(shared_memory);
}

// Memory that nothing writes while the kernel runs.
DEVICE Piece load_piece(const void* from) {
    Piece piece;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(piece.word[0]), "=r"(piece.word[1]), "=r"(piece.word[2]), "=r"(piece.word[3])
        : "l"(from));
    return piece;
}

// The same for what a step reads once, such as weights.
DEVICE Piece load_piece_once(const void* from) {
    Piece piece;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(piece.word[0]), "=r"(piece.word[1]), "=r"(piece.word[2]), "=r"(piece.word[3])
        : "l"(from));
    return piece;
}

// To global or shared memory.
DEVICE void store_piece(void* to, Piece piece) { *static_cast<Piece*>(to) = piece; }

// d += a b for a tile [16, 16] of a and [16, 8] of b, both bf16.
DEVICE void mma_bf16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four tiles of eight rows of eight numbers of 16 bits, from shared memory: lane i says where row i % 8 of tile i / 8 is, and gets of each tile the two
// numbers from 2 * (i % 4) on of row i / 4. So mma takes its operands.
DEVICE void load_tiles(u32 (&tiles)[4], const Piece* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// Sixteen bytes from global to shared memory, zeros where not `valid`. They are there after the wait of this thread, and for
// other threads after a barrier behind it.
DEVICE void copy_async_16(void* to, const void* from, bool valid) {
    u32 bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(to))), "l"(from), "r"(bytes)
                 : "memory");
}

DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the newest `N` groups are on their way.
template <int N>
DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// The same value, which the compiler takes for another one: what is made of it is made where it is used, instead of once before a loop and kept in
// registers that the loop has no room for.
DEVICE u32 afresh(u32 value) {
    asm volatile("" : "+r"(value));
    return value;
}

DEVICE u32 bits_of(f32 value) { return __float_as_uint(value); }
DEVICE f32 f32_of_bits(u32 bits) { return __uint_as_float(bits); }

// Two numbers to bf16, nearest even, `low` in the low half.
DEVICE u32 pack_bf16(f32 low, f32 high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE u16 f32_to_bf16(f32 value) { return static_cast<u16>(pack_bf16(value, 0.0f)); }

DEVICE f32 f16_to_f32(u16 bits) {
    f32 value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// Two numbers to f16, nearest even, `low` in the low half. What f16 cannot hold becomes NaN: infinity would be hidden by a softcap, or as a
// score by a weight of zero. The product with zero makes NaN of infinity and adds nothing to any other number.
DEVICE u32 pack_f16(f32 low, f32 high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    asm("fma.rn.f16x2 %0, %0, %1, %0;" : "+r"(pair) : "r"(0));
    return pair;
}

DEVICE u16 f32_to_f16(f32 value) { return static_cast<u16>(pack_f16(value, 0.0f)); }

DEVICE f32 exp_of(f32 x) { return expf(x); }

// 2^x in one instruction, within 2 ulp: 1 of 0 and 0 of minus infinity, exactly.
DEVICE f32 power_of_two(f32 x) {
    f32 power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// 1 / x in one instruction, within 1 ulp.
DEVICE f32 reciprocal(f32 x) {
    f32 result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

DEVICE f32 log_of(f32 x) { return logf(x); }
DEVICE f64 log_of(f64 x) { return log(x); }
DEVICE f32 tanh_of(f32 x) { return tanhf(x); }
DEVICE f32 erf_of(f32 x) { return erff(x); }
DEVICE f32 rsqrt_of(f32 x) { return __frcp_rn(__fsqrt_rn(x)); }
DEVICE f32 fused(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }

#else
#include "../tests/emulator/shim.h"
#endif

DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }

DEVICE u32 lane() { return thread_index() % 32; }
DEVICE u32 warp() { return thread_index() / 32; }

// The sum of 32 lanes, the same bits in every one.
DEVICE f32 warp_sum(f32 value) {
    for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

DEVICE u32 warp_sum(u32 value) {
    for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

DEVICE f32 warp_max(f32 value) {
    for (u32 mask = 16; mask > 0; mask /= 2) {
        const f32 other = shuffle_xor(value, mask);
        value = other > value ? other : value;
    }
    return value;
}

DEVICE f32 bf16_to_f32(u16 bits) { return f32_of_bits(static_cast<u32>(bits) << 16); }

// The types that GEMMs and KV are kept in, for templates of kernels. `PIECE` numbers fill a piece.
struct Bf16 {
    typedef u16 Bits;
    static constexpr u32 PIECE = 8;
    DEVICE f32 widen(u16 bits) { return bf16_to_f32(bits); }
    DEVICE u16 narrow(f32 value) { return f32_to_bf16(value); }
    DEVICE u32 pack(f32 low, f32 high) { return pack_bf16(low, high); }
    DEVICE void mma(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(d, a, b); }
};

struct F16 {
    typedef u16 Bits;
    static constexpr u32 PIECE = 8;
    DEVICE f32 widen(u16 bits) { return f16_to_f32(bits); }
    DEVICE u16 narrow(f32 value) { return f32_to_f16(value); }
    DEVICE u32 pack(f32 low, f32 high) { return pack_f16(low, high); }
    DEVICE void mma(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(d, a, b); }
};

// Kept as it is, and without tensor cores.
struct F32 {
    typedef f32 Bits;
    static constexpr u32 PIECE = 4;
    DEVICE f32 widen(f32 value) { return value; }
    DEVICE f32 narrow(f32 value) { return value; }
};
