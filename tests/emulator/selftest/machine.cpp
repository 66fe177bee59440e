// The machine does what the device does, and says what is wrong with kernels.
#include "../machine.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "kernels.h"

using emulator::launch;
using emulator::Orders;
using emulator::set_orders;

namespace {

struct alignas(16) Buffer {
    f32 values[4096];
    Buffer() { std::memset(values, 0xff, sizeof values); }
};

ProbeArgs args_of(const Buffer& from, Buffer& to, u32 number = 0, u32 count = 0) { return ProbeArgs{from.values, to.values, number, count}; }

u32 nans(const Buffer& buffer, u32 count) {
    u32 found = 0;
    for (u32 i = 0; i < count; ++i) found += std::isnan(buffer.values[i]);
    return found;
}

u32 bits(f32 value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

const Orders ALL[] = {Orders::Ascending, Orders::Descending, Orders::Random};

// What a kernel of 64 threads leaves that is not a number, in each order.
u32 nans_of(const char* kernel, Orders order, u32 number, u32 threads) {
    set_orders(order, 1);
    Buffer from, to;
    for (f32& value : from.values) value = 1.0f;
    CHECK(launch(kernel, 1, 1, 1, threads, 2048, args_of(from, to, number, 4)).empty());
    return nans(to, threads);
}

}  // namespace

TEST(barriers_make_writes_seen) {
    for (const Orders order : ALL) {
        set_orders(order, 7);
        Buffer from, to;
        CHECK(launch("probe_reverse", 1, 1, 1, 64, 256, args_of(from, to)).empty());
        for (u32 i = 0; i < 64; ++i) CHECK(to.values[i] == static_cast<f32>(63 - i));
    }
}

TEST(lanes_exchange_values) {
    for (const Orders order : ALL) {
        set_orders(order, 7);
        Buffer from, to;
        CHECK(launch("probe_warp", 1, 1, 1, 32, 0, args_of(from, to)).empty());
        f32 sums[32];
        for (u32 i = 0; i < 32; ++i) sums[i] = static_cast<f32>(i) * 0.1f;
        for (u32 mask = 16; mask > 0; mask /= 2) {
            f32 next[32];
            for (u32 i = 0; i < 32; ++i) next[i] = sums[i] + sums[i ^ mask];
            std::memcpy(sums, next, sizeof sums);
        }
        for (u32 i = 0; i < 32; ++i) {
            u32 got[8];
            std::memcpy(got, to.values + i * 8, sizeof got);
            CHECK(got[0] == (i ^ 5) * 3);
            CHECK(got[1] == 9);
            CHECK(got[2] == (i + 4 < 32 ? i + 4 : i) * 3);
            CHECK(got[3] == 0x49249249u);
            CHECK(got[4] == 1 && got[5] == 0);
            CHECK(got[6] == bits(sums[i]));
            CHECK(got[7] == bits(31.0f));
        }
    }
}

namespace {

void tiles(const char* kernel, u16 (*number)(u32), f32 (*widen)(u16)) {
    Buffer from, to;
    u16* a = reinterpret_cast<u16*>(from.values);
    for (u32 i = 0; i < 384; ++i) a[i] = number(i);
    for (u32 i = 0; i < 128; ++i) to.values[i] = 0.5f * static_cast<f32>(i);
    CHECK(launch(kernel, 1, 1, 1, 32, 0, args_of(from, to)).empty());
    for (u32 row = 0; row < 16; ++row)
        for (u32 column = 0; column < 8; ++column) {
            f32 sum = 0.5f * static_cast<f32>(row * 8 + column);
            for (u32 k = 0; k < 16; ++k) sum += widen(a[row * 16 + k]) * widen(a[256 + column * 16 + k]);
            CHECK(bits(sum) == bits(to.values[row * 8 + column]));
        }
}

f32 of_bf16(u16 value) {
    const u32 wide = static_cast<u32>(value) << 16;
    f32 number;
    std::memcpy(&number, &wide, 4);
    return number;
}

}  // namespace

TEST(tiles_multiply_as_the_device_lays_them_out) {
    tiles("probe_tile_bf16", [](u32 i) { return static_cast<u16>(bits(std::sin(static_cast<f32>(i))) >> 16); }, of_bf16);
    tiles("probe_tile_f16", [](u32 i) { return emulator::f32_to_f16(std::sin(static_cast<f32>(i))); }, emulator::f16_to_f32);
}

TEST(half_numbers_keep_their_bits_and_round_to_even) {
    for (u32 i = 0; i < 65536; ++i) {
        const u16 half = static_cast<u16>(i);
        const f32 wide = emulator::f16_to_f32(half);
        if (std::isnan(wide)) CHECK((half & 0x7fff) > 0x7c00);
        else CHECK(emulator::f32_to_f16(wide) == half);
        if ((half & 0x7fff) >= 0x7bff) continue;
        // Halfway to the next goes to the even one, and a little more or less to the nearer.
        const f32 next = emulator::f16_to_f32(static_cast<u16>(half + 1));
        const f32 middle = wide + (next - wide) / 2;
        CHECK(emulator::f32_to_f16(middle) == static_cast<u16>(half % 2 == 0 ? half : half + 1));
        CHECK(emulator::f32_to_f16(std::nextafter(middle, wide)) == half);
        CHECK(emulator::f32_to_f16(std::nextafter(middle, next)) == static_cast<u16>(half + 1));
    }
    CHECK(emulator::f16_to_f32(1) == 0x1p-24f);
    CHECK(emulator::f16_to_f32(0x7bff) == 65504.0f);
    CHECK(emulator::f32_to_f16(1e9f) == 0x7c00);
}

TEST(every_block_runs_once) {
    for (const Orders order : ALL) {
        set_orders(order, 3);
        Buffer from, to;
        std::memset(to.values, 0, sizeof to.values);
        for (u32 turn = 0; turn < 2; ++turn) CHECK(launch("probe_block", 5, 3, 2, 32, 0, args_of(from, to)).empty());
        for (u32 i = 0; i < 30; ++i) CHECK(to.values[i] == 2.0f);
        CHECK(to.values[30] == 0.0f);
    }
}

TEST(a_missing_block_barrier_shows) {
    CHECK(nans_of("wrong_no_barrier", Orders::Ascending, 0, 64) > 0);
    CHECK(nans_of("wrong_no_barrier", Orders::Descending, 0, 64) > 0);
    CHECK(nans_of("wrong_no_barrier", Orders::Random, 0, 64) > 0);
}

TEST(a_missing_warp_barrier_shows) { CHECK(nans_of("wrong_no_warp_barrier", Orders::Ascending, 0, 32) > 0); }

TEST(shared_memory_begins_as_nan) {
    for (const Orders order : ALL) CHECK(nans_of("wrong_unwritten", order, 0, 32) == 32);
}

TEST(asynchronous_copies_arrive_when_waited_for) {
    for (const Orders order : ALL) CHECK(nans_of("probe_stages", order, 0, 64) == 0);
}

TEST(a_wait_for_too_few_copies_shows) {
    for (const Orders order : ALL) CHECK(nans_of("probe_stages", order, 1, 64) == 64);
}

TEST(a_missing_barrier_behind_a_wait_shows) {
    CHECK(nans_of("probe_stages", Orders::Ascending, 2, 64) > 0);
    CHECK(nans_of("probe_stages", Orders::Descending, 2, 64) > 0);
}

TEST(a_stage_refilled_too_early_shows) {
    CHECK(nans_of("probe_stages", Orders::Ascending, 3, 64) + nans_of("probe_stages", Orders::Descending, 3, 64) > 0);
}

TEST(copies_of_nothing_leave_zeros) {
    Buffer from, to;
    for (f32& value : from.values) value = 2.0f;
    CHECK(launch("probe_zero_fill", 1, 1, 1, 32, 512, args_of(from, to)).empty());
    for (u32 i = 0; i < 32; ++i) CHECK(to.values[i] == (i % 2 == 0 ? 2.0f : 0.0f));
}

TEST(failures_name_kernel_block_and_thread) {
    set_orders(Orders::Ascending, 0);
    Buffer from, to;
    const auto run = [&](const char* kernel, u32 threads, u32 number) {
        return launch(kernel, 1, 1, 1, threads, 512, args_of(from, to, number, 1));
    };
    CHECK_SAYS(run("wrong_unwaited", 32, 0), "kernel wrong_unwaited, block (0, 0, 0), thread 0");
    CHECK_SAYS(run("wrong_unwaited", 32, 0), "1 asynchronous copies it did not wait for");
    CHECK_SAYS(run("wrong_deadlock", 64, 0), "deadlock");
    CHECK_SAYS(run("wrong_deadlock", 64, 0), "warp 1: at the block barrier 000000ff, at the warp's (24 of 32) ffffff00");
    CHECK_SAYS(run("wrong_meetings", 32, 0), "while other lanes of the warp wait in warp_sync");
    CHECK_SAYS(run("wrong_partial_warp", 32, 0), "of its warp wait for it");
    CHECK_SAYS(run("wrong_piece", 32, 4), "not a multiple of 16");
    CHECK(run("wrong_piece", 32, 16).empty());
    CHECK_SAYS(run("wrong_piece_shared", 32, 0), "which is shared memory");
    CHECK_SAYS(run("wrong_copy_target", 32, 8), "not a multiple of 16");
    CHECK_SAYS(run("wrong_copy_target", 32, 512), "byte 512 of shared memory, of which the block has 512");
    CHECK_SAYS(run("wrong_division", 32, 0), "divided by zero");
    CHECK_SAYS(run("wrong_stack", 32, 0), "local variables take more than 64 KiB");
    CHECK_SAYS(run("probe_big_shared", 32, 513), "byte 512 of shared memory, of which the block has 512");
    CHECK(run("probe_big_shared", 32, 512).empty());
}

TEST(what_the_device_refuses_and_the_host_does_not_is_found) {
    set_orders(Orders::Ascending, 0);
    Buffer from, to;
    const auto run = [&](const char* kernel, u32 number) { return launch(kernel, 1, 1, 1, 32, 0, args_of(from, to, number, 1)); };
    CHECK_SAYS(run("wrong_alignment", 4), "not aligned to its type");
    CHECK(run("wrong_alignment", 8).empty());
    CHECK_SAYS(run("wrong_shift", 32), "a shift by as many bits");
    CHECK(run("wrong_shift", 31).empty());
    CHECK_SAYS(run("wrong_bounds", 5), "an index outside its array (4)");
    CHECK(run("wrong_bounds", 4).empty());
}

TEST(launches_of_the_wrong_shape_are_refused) {
    Buffer from, to;
    CHECK_SAYS(launch("probe_absent", 1, 1, 1, 32, 0, args_of(from, to)), "no kernel is called");
    CHECK_SAYS(launch("probe_add", 1, 1, 1, 32, 0, 1.0), "takes 24 bytes of arguments, not 8");
    CHECK_SAYS(launch("probe_add", 1, 1, 1, 128, 0, args_of(from, to)), "made for 64");
    CHECK_SAYS(launch("probe_add", 1, 1, 1, 16, 0, args_of(from, to)), "multiples of 32");
    CHECK_SAYS(launch("probe_add", 1, 0, 1, 32, 0, args_of(from, to)), "a grid of 1 x 0 x 1");
}

TEST(of_several_failures_the_first_block_counts) {
    Buffer from, to;
    for (u32 turn = 0; turn < 20; ++turn) {
        set_orders(Orders::Ascending, turn);
        CHECK_SAYS(launch("wrong_unwaited", 64, 1, 1, 32, 512, args_of(from, to)), "block (0, 0, 0), thread 0 ");
        set_orders(Orders::Descending, turn);
        CHECK_SAYS(launch("wrong_unwaited", 64, 1, 1, 32, 512, args_of(from, to)), "block (63, 0, 0), thread 31 ");
    }
}
