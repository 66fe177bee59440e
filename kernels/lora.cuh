// Which pairs a group of rows has at a site, and how blocks share the work on them.
#pragma once
#include "deltas.cuh"
#include "gemm_rows.cuh"

constexpr u32 LORA_THREADS = 256;

// Groups of a step with what is to do for each, LORA_THREADS of them at a time, in shared memory.
struct Work {
    const Pair* pairs[LORA_THREADS];
    u32 count[LORA_THREADS];  // pairs
    u32 end[LORA_THREADS];    // items of this group and those before it
    u32 warp_items[LORA_THREADS / WARP];
    u32 pad[2];
};

// Whole pieces, in bytes.
DEVICE constexpr u32 in_pieces(u32 bytes) { return (bytes + 15) / 16 * 16; }

// Inclusive sums over the block's threads. `warp_sums` is shared.
DEVICE u32 sum_to_here(u32 value, u32* warp_sums) {
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        const u32 before = shuffle(value, lane() - distance);
        if (lane() >= distance) value += before;
    }
    if (lane() == WARP - 1) warp_sums[warp()] = value;
    block_sync();
    for (u32 i = 0; i < warp(); i++) value += warp_sums[i];
    return value;
}

// The items of one of some groups: `of_pair(len, pair)` for each of its pairs.
template <class G, class Find, class Count>
DEVICE void gather_work(Work& work, const G* groups, u32 count, const Find& pairs_of_group, u32 first, const Count& of_pair) {
    const u32 index = first + thread_index();
    u32 items = 0;
    Pairs pairs{nullptr, 0};
    if (index < count) {
        const G group = groups[index];
        pairs = pairs_of_group(group);
        for (u32 i = 0; i < pairs.count; i++) items += of_pair(group.len, pairs.first[i]);
    }
    work.pairs[thread_index()] = pairs.first;
    work.count[thread_index()] = pairs.count;
    work.end[thread_index()] = sum_to_here(items, work.warp_items);
    block_sync();
}

// The first group whose items end behind `item`.
DEVICE u32 group_of_item(const Work& work, u32 item) {
    u32 low = 0, high = LORA_THREADS - 1;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (work.end[middle] > item) high = middle;
        else low = middle + 1;
    }
    return low;
}

// Which of the blocks that share something this one is, and how many they are.
struct Share {
    u32 index;
    u32 blocks;
};

// Calls `run(group, pair, i)` for this block's share of the items of all pairs of all groups, i counting those of one pair. The
// share depends on what groups there are, what an item is does not.
template <class G, class Find, class Count, class Run>
DEVICE void share_groups(Work& work, const Share& share, const G* groups, u32 count, const Find& pairs_of_group, const Count& of_pair, const Run& run) {
    u32 passed = 0;
    for (u32 first = 0; first < count; first += LORA_THREADS) {
        gather_work(work, groups, count, pairs_of_group, first, of_pair);
        const u32 items = work.end[LORA_THREADS - 1];
        for (u32 item = (share.index + share.blocks - passed % share.blocks) % share.blocks; item < items; item += share.blocks) {
            const u32 index = group_of_item(work, item);
            const G group = groups[first + index];
            u32 left = item - (index > 0 ? work.end[index - 1] : 0);
            for (u32 i = 0; i < work.count[index]; i++) {
                const Pair& pair = work.pairs[index][i];
                const u32 own = of_pair(group.len, pair);
                if (left < own) {
                    run(group, pair, left);
                    break;
                }
                left -= own;
            }
        }
        passed += items;
        block_sync();
    }
}

// The same for the groups of a row set, with what their slots have at a site.
template <class Count, class Run>
DEVICE void share_work(Work& work, const Share& share, const RowSet& set, const SiteTable& deltas, const Count& of_pair, const Run& run) {
    const auto pairs_of_group = [&](const Group& group) { return pairs_of(deltas, static_cast<i32>(group.slot)); };
    share_groups(work, share, set.group, set.groups, pairs_of_group, of_pair, run);
}
