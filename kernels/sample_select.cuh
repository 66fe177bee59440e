// The best of a row without sorting it: by number, or by mass.
#pragma once
#include "sample.cuh"

// What is kept: keys above the border, and those equal to it up to an id.
struct Border {
    u32 key;
    u32 last;
};

DEVICE bool is_kept(const Border& border, u32 key, u32 id) { return key > border.key || (key == border.key && id <= border.last); }

// A search among keys from `low` on and below `high`.
struct Range {
    u32 low, high;
};

// Keys that are looked at in one pass: their sums lie in registers, of which a thread has few.
constexpr u32 PROBES_OF_NUMBERS = 7, PROBES_OF_MASSES = 5;

// The largest key from which on the masses of `count` entries add up to `goal`, and by how many of those equal to it they do;
// `ids` ascend. Where all are less than the goal, all are kept.
template <class Sum, u32 PROBES, class Key, class Mass>
DEVICE Border border_of(const u32* ids, u32 count, Range range, Sum goal, const Key& key, const Mass& mass) {
    Sum above = 0;
    while (range.high - range.low > 1) {
        const u32 part = (range.high - range.low) / (PROBES + 1), step = part > 0 ? part : 1;
        Sum sums[PROBES] = {};
#pragma unroll 1
        for (u32 i = thread_index(); i < count; i += SAMPLE_THREADS) {
            const u32 own = key(ids[i]);
            const Sum weight = mass(own);
#pragma unroll
            for (u32 probe = 0; probe < PROBES; probe++) {
                const u32 from = range.low + (probe + 1) * step;
                if (own >= from) sums[probe] += weight;
            }
        }
        // The probes ascend and their sums descend: the first that falls short ends the search of this pass.
        const Range before = range;
        bool ended = false;
#pragma unroll
        for (u32 probe = 0; probe < PROBES; probe++) {
            const Sum sum = block_total(sums[probe]);
            const u32 from = before.low + (probe + 1) * step;
            if (ended || from >= before.high) continue;
            if (sum >= goal) {
                range.low = from;
            } else {
                range.high = from;
                above = sum;
                ended = true;
            }
        }
    }
    const Sum one = mass(range.low);
    const Sum wanted = one > 0 ? (goal - above + one - 1) / one : count;
    const auto equal = [&](u32 i) { return key(ids[i]) == range.low; };
    if (thread_index() == 0) desk().number = ~0u;
    count_where(count, equal);
    put_where(count, equal, [&](u32 place, u32 i) {
        if (place + 1 == wanted) desk().number = ids[i];
    });
    return Border{range.low, desk().number};
}

// The best of a row: `count` of them sorted in Desk::keys by rank, or where those are too many what is kept.
struct Selected {
    u32 count;
    bool many;
    Border border;
};

// At least `k` scores are as good as the k-th best of the threads' best.
DEVICE u32 bound_of(u32 k, u32 own) {
    const u32 none = ascending(f32_of_bits(MINUS_INFINITY)) + 1;
    if (k > SAMPLE_THREADS) return none;
    desk().keys[thread_index()] = own;
    sort_keys(SAMPLE_THREADS);
    const u32 rank = static_cast<u32>(desk().keys[k - 1]);
    block_sync();
    return rank == ~0u ? none : ~rank;
}

// The `k` best of `scores` above minus infinity. `list` has room for as many ids.
DEVICE Selected select_best(const f32* scores, u32 count, u32 k, const Best& best, u32* list) {
    const u32 bound = bound_of(k, best.own);
    const auto holds = [&](u32 id) { return ascending(scores[id]) >= bound; };
    const auto put_key = [&](u32 place, u32 id) { desk().keys[place] = rank_of(scores[id], id); };
    const u32 held = count_where(count, holds);
    if (held <= CANDIDATES) {
        put_where(count, holds, put_key);
        sort_keys(held);
        return Selected{held < k ? held : k, false, Border{0, 0}};
    }
    put_where(count, holds, [&](u32 place, u32 id) { list[place] = id; });
    const Range range{bound, ~static_cast<u32>(best.rank >> 32) + 1};
    const auto key = [&](u32 id) { return ascending(scores[id]); };
    const Border border = border_of<u32, PROBES_OF_NUMBERS>(list, held, range, k, key, [](u32) { return 1u; });
    if (k > CANDIDATES) return Selected{k, true, border};
    const auto kept = [&](u32 id) { return is_kept(border, ascending(scores[id]), id); };
    const u32 found = count_where(count, kept);
    put_where(count, kept, put_key);
    sort_keys(found);
    return Selected{found, false, border};
}
