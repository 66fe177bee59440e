// The host's side of `kernels/device.cuh`: what the kernels of `kernels/*.cu` call when the host's compiler compiles them. Nothing
// else includes this file.
#pragma once
#include <cmath>
#include <cstring>

#include "machine.h"

#define DEVICE static inline __attribute__((unused))

#define KERNEL(name, threads, Args)                                                                                        \
    static void name([[maybe_unused]] const Args args);                                                                                     \
    static const ::emulator::Kernel name##_kernel(                                                                         \
        #name, threads, sizeof(Args), [](const void* args) { name(*static_cast<const Args*>(args)); });                    \
    static void name([[maybe_unused]] const Args args)

#define KERNEL_RESIDENT(name, threads, blocks, Args) KERNEL(name, threads, Args)

constexpr u32 FULL_MASK = 0xffffffffu;

struct alignas(16) Piece {
    u32 word[4];
};

DEVICE u32 thread_index() { return emulator::running.thread; }
DEVICE u32 block_index_x() { return emulator::running.block[0]; }
DEVICE u32 block_index_y() { return emulator::running.block[1]; }
DEVICE u32 block_index_z() { return emulator::running.block[2]; }
DEVICE u32 grid_x() { return emulator::running.grid[0]; }
DEVICE u32 grid_y() { return emulator::running.grid[1]; }
DEVICE u32 grid_z() { return emulator::running.grid[2]; }
DEVICE u32 block_threads() { return emulator::running.threads; }

DEVICE void block_sync() { emulator::block_barrier(); }
DEVICE void warp_sync() { emulator::warp_barrier(); }

namespace emulator {
template <class T>
static inline T exchanged(Meeting meeting, T value, u32 choice) {
    static_assert(sizeof(T) <= sizeof(u64), "a shuffle moves up to 8 bytes");
    u64 bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = exchange(meeting, bits, choice);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
}  // namespace emulator

template <class T>
DEVICE T shuffle_xor(T value, u32 mask) { return emulator::exchanged(emulator::Meeting::ShuffleXor, value, mask); }
template <class T>
DEVICE T shuffle(T value, u32 lane) { return emulator::exchanged(emulator::Meeting::Shuffle, value, lane); }
template <class T>
DEVICE T shuffle_down(T value, u32 lanes) { return emulator::exchanged(emulator::Meeting::ShuffleDown, value, lanes); }
DEVICE u32 lanes_where(bool holds) { return static_cast<u32>(emulator::exchange(emulator::Meeting::Ballot, holds, 0)); }
DEVICE bool any_lane(bool holds) { return emulator::exchange(emulator::Meeting::Ballot, holds, 0) != 0; }
DEVICE u32 count_bits(u32 bits) { return static_cast<u32>(__builtin_popcount(bits)); }

DEVICE void add_shared(u32* counter, u32 count) { *counter += count; }

DEVICE u8* shared_bytes() { return emulator::running.shared; }

DEVICE Piece load_piece(const void* from) {
    emulator::check_piece(from, emulator::Access::LoadGlobal);
    return *static_cast<const Piece*>(from);
}
DEVICE Piece load_piece_once(const void* from) { return load_piece(from); }
DEVICE void store_piece(void* to, Piece piece) {
    emulator::check_piece(to, emulator::Access::Store);
    *static_cast<Piece*>(to) = piece;
}

DEVICE void mma_bf16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulator::multiply(emulator::Meeting::MmaBf16, d, a, b);
}
DEVICE void mma_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulator::multiply(emulator::Meeting::MmaF16, d, a, b);
}

DEVICE void load_tiles(u32 (&tiles)[4], const Piece* row) { emulator::load_tiles(tiles, row); }

DEVICE void copy_async_16(void* to, const void* from, bool valid) { emulator::copy_async(to, from, valid); }
DEVICE void copy_async_commit() { emulator::copy_async_commit(); }
template <int N>
DEVICE void copy_async_wait() { emulator::copy_async_wait(N); }

DEVICE u32 afresh(u32 value) { return value; }

DEVICE u32 bits_of(f32 value) {
    u32 bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
DEVICE f32 f32_of_bits(u32 bits) {
    f32 value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

DEVICE u16 f32_to_bf16(f32 value) {
    const u32 bits = bits_of(value);
    if (value != value) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
DEVICE u32 pack_bf16(f32 low, f32 high) {
    return static_cast<u32>(f32_to_bf16(low)) | static_cast<u32>(f32_to_bf16(high)) << 16;
}
DEVICE f32 f16_to_f32(u16 bits) { return emulator::f16_to_f32(bits); }
DEVICE u16 f32_to_f16(f32 value) {
    const u16 bits = emulator::f32_to_f16(value);
    return (bits & 0x7fff) == 0x7c00 ? 0x7fff : bits;
}
DEVICE u32 pack_f16(f32 low, f32 high) {
    return static_cast<u32>(f32_to_f16(low)) | static_cast<u32>(f32_to_f16(high)) << 16;
}

DEVICE f32 exp_of(f32 x) { return std::exp(x); }
DEVICE f32 power_of_two(f32 x) { return std::exp2(x); }
DEVICE f32 reciprocal(f32 x) { return 1.0f / x; }
DEVICE f32 log_of(f32 x) { return std::log(x); }
DEVICE f64 log_of(f64 x) { return std::log(x); }
DEVICE f32 tanh_of(f32 x) { return std::tanh(x); }
DEVICE f32 erf_of(f32 x) { return std::erf(x); }
DEVICE f32 rsqrt_of(f32 x) { return 1.0f / std::sqrt(x); }
DEVICE f32 fused(f32 a, f32 b, f32 c) { return std::fma(a, b, c); }
