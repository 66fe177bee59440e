// What lanes of a warp and threads of a block do together. The lane that comes last does the work for all.
#include "block.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulator {

namespace {

const char* name_of(Meeting meeting) {
    switch (meeting) {
        case Meeting::None: return "nothing";
        case Meeting::Barrier: return "warp_sync";
        case Meeting::ShuffleXor: return "shuffle_xor";
        case Meeting::Shuffle: return "shuffle";
        case Meeting::ShuffleDown: return "shuffle_down";
        case Meeting::Ballot: return "lanes_where or any_lane";
        case Meeting::LoadTiles: return "load_tiles";
        case Meeting::MmaBf16: return "mma_bf16";
        case Meeting::MmaF16: return "mma_f16";
    }
    return "?";
}

// Joins the lanes that have come, and waits for the others. Returns when the results are there.
void meet(Block& block, Warp& warp, Meeting meeting) {
    if (warp.live != LANES) fail(Cause::Other, "%s wants 32 lanes, and %u of the warp have ended", name_of(meeting), LANES - warp.live);
    if (warp.arrived == 0) warp.meeting = meeting;
    if (warp.meeting != meeting) fail(Cause::Other, "%s, while other lanes of the warp wait in %s", name_of(meeting), name_of(warp.meeting));
    if (++warp.arrived < LANES) {
        block.wait(State::InWarp);
        return;
    }
    settle(warp);
    warp.arrived = 0;
    const u32 first = running.thread / LANES * LANES;
    for (u32 lane = 0; lane < LANES; ++lane) block.set_ready(first + lane);
    // Behind a barrier the order begins anew; the last lane would otherwise come first.
    if (meeting == Meeting::Barrier) block.take_turn();
}

Block& inside(const char* what) {
    if (running.state) return *running.state;
    std::fprintf(stderr, "emulator: %s outside a kernel\n", what);
    std::abort();
}

// A row of the tile of d, or of b.
typedef f32 Columns __attribute__((vector_size(32)));

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx2", "default")))
#endif
void multiply_tile(const f32 (*a)[16], const Columns* b, Columns* d) {
    for (u32 row = 0; row < 16; ++row) {
        Columns sum = d[row];
        for (u32 k = 0; k < 16; ++k) sum += a[row][k] * b[k];
        d[row] = sum;
    }
}

template <f32 (*widen)(u16)>
void multiply_all(const Warp& warp) {
    alignas(32) f32 a[16][16];
    Columns b[16], d[16];
    f32* b_at = reinterpret_cast<f32*>(b);
    f32* d_at = reinterpret_cast<f32*>(d);
    for (u32 lane = 0; lane < LANES; ++lane) {
        const u32 group = lane / 4, pair = lane % 4 * 2;
        for (u32 word = 0; word < 4; ++word) {
            f32* at = &a[group + word % 2 * 8][pair + word / 2 * 8];
            at[0] = widen(static_cast<u16>(warp.a[lane][word]));
            at[1] = widen(static_cast<u16>(warp.a[lane][word] >> 16));
        }
        for (u32 word = 0; word < 2; ++word) {
            f32* at = b_at + (pair + word * 8) * 8 + group;
            at[0] = widen(static_cast<u16>(warp.b[lane][word]));
            at[8] = widen(static_cast<u16>(warp.b[lane][word] >> 16));
        }
        std::memcpy(d_at + group * 8 + pair, warp.d[lane], 8);
        std::memcpy(d_at + (group + 8) * 8 + pair, warp.d[lane] + 2, 8);
    }
    multiply_tile(a, b, d);
    for (u32 lane = 0; lane < LANES; ++lane) {
        const u32 group = lane / 4, pair = lane % 4 * 2;
        std::memcpy(warp.d[lane], d_at + group * 8 + pair, 8);
        std::memcpy(warp.d[lane] + 2, d_at + (group + 8) * 8 + pair, 8);
    }
}

// Lane i has two numbers of row i / 4 of each tile, whose rows eight lanes point to.
void load_all(const Warp& warp) {
    for (u32 lane = 0; lane < LANES; ++lane)
        for (u32 tile = 0; tile < 4; ++tile) warp.tiles[lane][tile] = warp.a[tile * 8 + lane / 4][lane % 4];
}

inline f32 of_bits(u32 bits) {
    f32 value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline f32 widen_bf16(u16 bits) { return of_bits(static_cast<u32>(bits) << 16); }

// The product moves the exponent from one bias to the other and is right below the least normal number as well.
inline f32 widen_f16(u16 bits) {
    const u32 sign = static_cast<u32>(bits >> 15) << 31;
    const u32 size = bits & 0x7fff;
    if (size >= 0x7c00) return of_bits(sign | 0x7f800000 | (size & 0x3ff) << 13);
    return of_bits(sign | size << 13) * 0x1p112f;
}

}  // namespace

void settle(Warp& warp) {
    if (warp.meeting == Meeting::LoadTiles) return load_all(warp);
    if (warp.meeting == Meeting::MmaBf16) return multiply_all<widen_bf16>(warp);
    if (warp.meeting == Meeting::MmaF16) return multiply_all<widen_f16>(warp);
    u32 votes = 0;
    for (u32 lane = 0; lane < LANES; ++lane) {
        const u32 choice = warp.choice[lane];
        switch (warp.meeting) {
            case Meeting::None:
            case Meeting::Barrier:
            case Meeting::LoadTiles:
            case Meeting::MmaBf16:
            case Meeting::MmaF16: return;
            case Meeting::ShuffleXor: warp.result[lane] = warp.value[(lane ^ choice) % LANES]; break;
            case Meeting::Shuffle: warp.result[lane] = warp.value[choice % LANES]; break;
            case Meeting::ShuffleDown: warp.result[lane] = warp.value[lane + choice < LANES ? lane + choice : lane]; break;
            case Meeting::Ballot: votes |= static_cast<u32>(warp.value[lane] != 0) << lane; break;
        }
    }
    if (warp.meeting == Meeting::Ballot)
        for (u32 lane = 0; lane < LANES; ++lane) warp.result[lane] = votes;
}

void block_barrier() {
    Block& block = inside("block_sync");
    if (block.warps[running.thread / LANES].arrived > 0) fail(Cause::Other, "block_sync, while other lanes of the warp wait in a meeting of the warp");
    block.state[running.thread] = State::AtBlockBarrier;
    if (++block.at_barrier < block.live) return block.wait(State::AtBlockBarrier);
    block.release_all();
    block.take_turn();
}

void warp_barrier() {
    Block& block = inside("warp_sync");
    meet(block, block.warps[running.thread / LANES], Meeting::Barrier);
}

u64 exchange(Meeting meeting, u64 value, u32 choice) {
    Block& block = inside("a shuffle");
    Warp& warp = block.warps[running.thread / LANES];
    const u32 lane = running.thread % LANES;
    warp.value[lane] = value;
    warp.choice[lane] = choice;
    meet(block, warp, meeting);
    return warp.result[lane];
}

void multiply(Meeting meeting, f32* d, const u32* a, const u32* b) {
    Block& block = inside("mma");
    Warp& warp = block.warps[running.thread / LANES];
    const u32 lane = running.thread % LANES;
    warp.d[lane] = d;
    warp.a[lane] = a;
    warp.b[lane] = b;
    meet(block, warp, meeting);
}

void load_tiles(u32* tiles, const void* row) {
    Block& block = inside("load_tiles");
    Warp& warp = block.warps[running.thread / LANES];
    const u32 lane = running.thread % LANES;
    check_piece(row, Access::LoadShared);
    warp.tiles[lane] = tiles;
    warp.a[lane] = static_cast<const u32*>(row);
    meet(block, warp, Meeting::LoadTiles);
}

f32 f16_to_f32(u16 bits) { return widen_f16(bits); }

u16 f32_to_f16(f32 value) {
    u32 bits;
    std::memcpy(&bits, &value, sizeof bits);
    const u32 sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7fff;
    if (size >= 0x477ff000) return static_cast<u16>(sign | 0x7c00);  // 65520, from which on infinity is the nearest
    if (size >= 0x38800000) return static_cast<u16>(sign | (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13);
    // Below the least normal number neighbours are 2^-24 apart, as those above 0.5 are in f32: the sum rounds.
    const f32 sum = of_bits(size) + 0.5f;
    std::memcpy(&bits, &sum, sizeof bits);
    return static_cast<u16>(sign | (bits - 0x3f000000));
}

}  // namespace emulator
