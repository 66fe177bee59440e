// What a block does with a row of logits: passes over all of it, sums in one order, lists of some of it.
#pragma once
#include "device.cuh"

constexpr u32 SAMPLE_THREADS = 1024;
constexpr u32 SAMPLE_WARPS = SAMPLE_THREADS / 32;
// Candidates that are kept in shared memory.
constexpr u32 CANDIDATES = 2048;
// Weights of a block of sums, and interleaved lanes of one: the partial sums of `sampler::pass`.
constexpr u32 SUM_BLOCK = SAMPLE_BLOCK;
constexpr u32 SUM_LANES = 8;

// Of one block; behind it the sums of the row's blocks, and those before each.
struct Desk {
    u64 keys[CANDIDATES];
    f32 weights[CANDIDATES];
    u64 parts[SAMPLE_WARPS];
    u32 before[SAMPLE_WARPS + 1];
    u32 number;
    f64 total;
};

static_assert(SAMPLE_SHARED == sizeof(Desk) && SAMPLE_BLOCK_SHARED == 2 * sizeof(f64), "the desk, then the sums");

DEVICE Desk& desk() { return *reinterpret_cast<Desk*>(shared_bytes()); }
DEVICE f64* block_sums() { return reinterpret_cast<f64*>(shared_bytes() + sizeof(Desk)); }
DEVICE u32 blocks_of(u32 count) { return (count + SUM_BLOCK - 1) / SUM_BLOCK; }

DEVICE bool is_finite(f32 value) { return (bits_of(value) & 0x7f800000u) != 0x7f800000u; }
constexpr u32 MINUS_INFINITY = 0xff800000u;

// Ascends with the score; -0 and +0 are equal.
DEVICE u32 ascending(f32 score) {
    const u32 bits = bits_of(score + 0.0f);
    return bits >> 31 == 0 ? bits | 0x80000000u : ~bits;
}
DEVICE f32 score_of(u32 ascends) { return f32_of_bits(ascends >> 31 != 0 ? ascends & 0x7fffffffu : ~ascends); }

// Smaller is better: the larger score, of equal scores the lower id.
DEVICE u64 rank_of(f32 score, u32 id) { return static_cast<u64>(~ascending(score)) << 32 | id; }
DEVICE f32 score_of_rank(u64 rank) { return score_of(~static_cast<u32>(rank >> 32)); }
constexpr u64 NO_RANK = ~0ull;

// e^x for x <= 0, operation by operation that of `sampler::exp`.
DEVICE f32 exp_nonpositive(f32 x) {
    constexpr f32 ROUNDER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const bool reachable = x > -87.0f;
    const f32 within = reachable ? x : -87.0f;
    const f32 shifted = within * 1.44269504088896340736f + ROUNDER;
    const f32 n = shifted - ROUNDER;
    const f32 r = (within - n * 0.6933594f) - n * -2.1219444e-4f;
    f32 p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const u32 exponent = bits_of(shifted) - bits_of(ROUNDER) + 127;
    const f32 value = p * f32_of_bits(exponent << 23);
    return reachable ? value : 0.0f;
}

// The least of all threads' values, for all of them.
DEVICE u64 block_least(u64 value) {
    for (u32 mask = 16; mask > 0; mask /= 2) {
        const u64 other = shuffle_xor(value, mask);
        value = other < value ? other : value;
    }
    if (lane() == 0) desk().parts[warp()] = value;
    block_sync();
    value = desk().parts[lane()];
    for (u32 mask = 16; mask > 0; mask /= 2) {
        const u64 other = shuffle_xor(value, mask);
        value = other < value ? other : value;
    }
    block_sync();
    return value;
}

// The sum of all threads' values, for all of them. Integers, so that order is nothing.
template <class Sum>
DEVICE Sum block_total(Sum value) {
    for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    if (lane() == 0) desk().parts[warp()] = value;
    block_sync();
    value = static_cast<Sum>(desk().parts[lane()]);
    for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    block_sync();
    return value;
}

// The best of the scores, and the upper half of the best of those that this thread looks at.
struct Best {
    u64 rank;
    u32 own;
    bool finite;  // all scores are
};

DEVICE Best best_of(const f32* scores, u32 count) {
    u64 own = NO_RANK;
    bool finite = true;
    f32 most = f32_of_bits(MINUS_INFINITY);
#pragma unroll 4
    for (u32 id = thread_index(); id < count; id += SAMPLE_THREADS) {
        const f32 score = scores[id];
        finite = finite && is_finite(score);
        if (score > most) {
            most = score;
            own = rank_of(score, id);
        }
    }
    const bool all_finite = block_total(finite ? 0u : 1u) == 0;
    return Best{block_least(own), static_cast<u32>(own >> 32), all_finite};
}

// Sums of `value(id)`, ids ascending in eight lanes of a block, lanes and then blocks ascending: as on the host, to the bit. The
// total; the sums of blocks and of those before each stay in shared memory.
template <class Value>
DEVICE f64 sum_blocks(u32 count, const Value& value) {
    const u32 blocks = blocks_of(count), place = thread_index() % SUM_LANES;
    for (u32 first = 0; first < blocks; first += SAMPLE_THREADS / SUM_LANES) {
        const u32 block = first + thread_index() / SUM_LANES;
        f64 sum = 0.0;
        const u32 end = block < blocks ? (count - block * SUM_BLOCK < SUM_BLOCK ? count : (block + 1) * SUM_BLOCK) : 0;
#pragma unroll 4
        for (u32 id = block * SUM_BLOCK + place; id < end; id += SUM_LANES) sum += static_cast<f64>(value(id));
        f64 folded = 0.0;
#pragma unroll
        for (u32 other = 0; other < SUM_LANES; other++) folded += shuffle(sum, lane() / SUM_LANES * SUM_LANES + other);
        if (block < blocks && place == 0) block_sums()[block] = folded;
    }
    block_sync();
    if (thread_index() == 0) {
        f64 total = 0.0;
        for (u32 block = 0; block < blocks; block++) {
            block_sums()[blocks + block] = total;
            total += block_sums()[block];
        }
        desk().total = total;
    }
    block_sync();
    return desk().total;
}

// Every warp takes the ids of one stretch, all of them in ascending order.
struct Stretch {
    u32 first, end;
};

DEVICE Stretch stretch_of(u32 count) {
    const u32 length = (count + SAMPLE_THREADS - 1) / SAMPLE_THREADS * 32, first = warp() * length;
    return Stretch{first < count ? first : count, count - first < length || first > count ? count : first + length};
}

// How many ids hold; leaves how many do before each warp's stretch.
template <class Holds>
DEVICE u32 count_where(u32 count, const Holds& holds) {
    const Stretch stretch = stretch_of(count);
    u32 held = 0;
#pragma unroll 1
    for (u32 id = stretch.first + lane(); id < stretch.end; id += 32) held += holds(id) ? 1 : 0;
    for (u32 mask = 16; mask > 0; mask /= 2) held += shuffle_xor(held, mask);
    block_sync();
    if (lane() == 0) desk().before[warp() + 1] = held;
    if (thread_index() == 0) desk().before[0] = 0;
    block_sync();
    if (thread_index() == 0) {
        for (u32 i = 0; i < SAMPLE_WARPS; i++) desk().before[i + 1] += desk().before[i];
    }
    block_sync();
    return desk().before[SAMPLE_WARPS];
}

// put(place, id) for the same ids, places ascending with ids from 0 on.
template <class Holds, class Put>
DEVICE void put_where(u32 count, const Holds& holds, const Put& put) {
    const Stretch stretch = stretch_of(count);
    u32 place = desk().before[warp()];
#pragma unroll 1
    for (u32 first = stretch.first; first < stretch.end; first += 32) {
        const u32 id = first + lane();
        const bool held = id < stretch.end && holds(id);
        const u32 mask = lanes_where(held);
        if (held) put(place + count_bits(mask & ((1u << lane()) - 1)), id);
        place += count_bits(mask);
    }
    block_sync();
}

// Sorts the first `count` keys, ascending: a bitonic network over the next power of two, the rest largest.
DEVICE void sort_keys(u32 count) {
    u32 size = 2;
    while (size < count) size *= 2;
    u64* keys = desk().keys;
#pragma unroll 1
    for (u32 i = count + thread_index(); i < size; i += SAMPLE_THREADS) keys[i] = NO_RANK;
    block_sync();
    for (u32 width = 2; width <= size; width *= 2) {
        for (u32 distance = width / 2; distance > 0; distance /= 2) {
#pragma unroll 1
            for (u32 i = thread_index(); i < size / 2; i += SAMPLE_THREADS) {
                const u32 low = i / distance * distance * 2 + i % distance, high = low + distance;
                const u64 a = keys[low], b = keys[high];
                const bool up = (low & width) == 0;
                if ((a > b) == up) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            block_sync();
        }
    }
}
