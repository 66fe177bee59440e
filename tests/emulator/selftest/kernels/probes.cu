// Kernels that test the emulator: some are right, and most have one mistake each.
#include "../kernels.h"

#include "../../../../kernels/device.cuh"

DEVICE f32* floats() { return reinterpret_cast<f32*>(shared_bytes()); }
DEVICE f32* output(const ProbeArgs& args) { return static_cast<f32*>(args.to); }

// --- right --------------------------------------------------------------------------------------------------------------

KERNEL(probe_add, 64, ProbeArgs) {
    const u32 at = block_index_x() * block_threads() + thread_index();
    if (at < args.count) output(args)[at] += static_cast<f32>(args.number);
}

KERNEL(probe_reverse, 64, ProbeArgs) {
    floats()[thread_index()] = static_cast<f32>(thread_index());
    block_sync();
    output(args)[thread_index()] = floats()[63 - thread_index()];
}

KERNEL(probe_warp, 32, ProbeArgs) {
    const u32 self = lane();
    u32* to = static_cast<u32*>(args.to) + self * 8;
    to[0] = shuffle_xor(self * 3, 5u);
    to[1] = shuffle(self * 3, 35u);
    to[2] = shuffle_down(self * 3, 4u);
    to[3] = lanes_where(self % 3 == 0);
    to[4] = any_lane(self == 31);
    to[5] = any_lane(self == 32);
    to[6] = bits_of(warp_sum(static_cast<f32>(self) * 0.1f));
    to[7] = bits_of(warp_max(static_cast<f32>(self * 7 % 32)));
}

// from: a [16, 16], then b as rows [8, 16]; to: d [16, 8], which is added to.
template <class E>
DEVICE void tile(const ProbeArgs& args) {
    const u16* a = static_cast<const u16*>(args.from);
    const u16* b = a + 256;
    const u32 group = lane() / 4, pair = lane() % 4 * 2;
    const auto two = [](const u16* at) { return static_cast<u32>(at[0]) | static_cast<u32>(at[1]) << 16; };
    const u32 a_words[4] = {two(a + group * 16 + pair), two(a + (group + 8) * 16 + pair), two(a + group * 16 + pair + 8),
                            two(a + (group + 8) * 16 + pair + 8)};
    const u32 b_words[2] = {two(b + group * 16 + pair), two(b + group * 16 + pair + 8)};
    f32* low = output(args) + group * 8 + pair;
    f32* high = output(args) + (group + 8) * 8 + pair;
    f32 d[4] = {low[0], low[1], high[0], high[1]};
    E::mma(d, a_words, b_words);
    low[0] = d[0];
    low[1] = d[1];
    high[0] = d[2];
    high[1] = d[3];
}
KERNEL(probe_tile_bf16, 32, ProbeArgs) { tile<Bf16>(args); }
KERNEL(probe_tile_f16, 32, ProbeArgs) { tile<F16>(args); }

// Two stages of shared memory, each filled while the other is read. number: 0 is right, 1 waits too little, 2 has no barrier behind
// the wait, 3 has none before the refill.
KERNEL(probe_stages, 64, ProbeArgs) {
    const u8* from = static_cast<const u8*>(args.from);
    const u32 mine = thread_index() * 16;
    f32 sum = 0;
    copy_async_16(shared_bytes() + mine, from + mine, true);
    copy_async_commit();
    for (u32 stage = 0; stage < args.count; ++stage) {
        if (stage + 1 < args.count) copy_async_16(shared_bytes() + (stage + 1) % 2 * 1024 + mine, from + (stage + 1) * 1024 + mine, true);
        copy_async_commit();
        if (args.number == 1) copy_async_wait<2>();
        else copy_async_wait<1>();
        if (args.number != 2) block_sync();
        sum += floats()[stage % 2 * 256 + 255 - thread_index()];
        if (args.number != 3) block_sync();
    }
    copy_async_wait<0>();
    output(args)[thread_index()] = sum;
}

KERNEL(probe_zero_fill, 32, ProbeArgs) {
    copy_async_16(shared_bytes() + thread_index() * 16, args.from, thread_index() % 2 == 0);
    copy_async_commit();
    copy_async_wait<0>();
    output(args)[thread_index()] = floats()[thread_index() * 4];
}

KERNEL(probe_block, 32, ProbeArgs) {
    if (thread_index() == 0) output(args)[(block_index_z() * grid_y() + block_index_y()) * grid_x() + block_index_x()] += 1.0f;
}

KERNEL(probe_big_shared, 32, ProbeArgs) { shared_bytes()[args.number - 1 - thread_index()] = 1; }

// --- wrong --------------------------------------------------------------------------------------------------------------

KERNEL(wrong_no_barrier, 64, ProbeArgs) {
    floats()[thread_index()] = 1.0f;
    output(args)[thread_index()] = floats()[63 - thread_index()];
}

KERNEL(wrong_no_warp_barrier, 32, ProbeArgs) {
    floats()[thread_index()] = 1.0f;
    output(args)[thread_index()] = floats()[31 - thread_index()];
}

KERNEL(wrong_unwritten, 32, ProbeArgs) { output(args)[thread_index()] = floats()[thread_index()]; }

KERNEL(wrong_unwaited, 32, ProbeArgs) {
    copy_async_16(shared_bytes() + thread_index() * 16, args.from, true);
    copy_async_commit();
}

KERNEL(wrong_deadlock, 64, ProbeArgs) {
    if (thread_index() < 40) block_sync();
    else warp_sync();
}

KERNEL(wrong_meetings, 32, ProbeArgs) {
    if (thread_index() < 16) warp_sync();
    else shuffle(1u, 0u);
}

KERNEL(wrong_partial_warp, 32, ProbeArgs) {
    if (thread_index() == 3) return;
    warp_sync();
}

KERNEL(wrong_piece, 32, ProbeArgs) { load_piece(static_cast<const u8*>(args.from) + args.number); }
KERNEL(wrong_piece_shared, 32, ProbeArgs) { load_piece(shared_bytes()); }
KERNEL(wrong_copy_target, 32, ProbeArgs) { copy_async_16(shared_bytes() + args.number, args.from, true); }
KERNEL(wrong_index, 32, ProbeArgs) { output(args)[args.number] = 1.0f; }
KERNEL(wrong_read, 32, ProbeArgs) { *static_cast<f32*>(args.to) = static_cast<const f32*>(args.from)[args.number]; }
KERNEL(wrong_before, 32, ProbeArgs) { output(args)[-1] = 1.0f; }
KERNEL(wrong_division, 32, ProbeArgs) { output(args)[0] = static_cast<f32>(args.count / args.number); }
KERNEL(wrong_alignment, 32, ProbeArgs) { *reinterpret_cast<u64*>(static_cast<u8*>(args.to) + args.number) = 1; }
KERNEL(wrong_shift, 32, ProbeArgs) { output(args)[0] = static_cast<f32>(args.count << args.number); }

KERNEL(wrong_bounds, 32, ProbeArgs) {
    f32 kept[4] = {1, 2, 3, 4};
    for (u32 i = 0; i < args.number; ++i) kept[i] += 1.0f;
    output(args)[0] = kept[0];
}

KERNEL(wrong_stack, 32, ProbeArgs) {
    volatile u8 kept[80 << 10];
    kept[args.number] = 1;
    output(args)[0] = kept[args.number];
}
