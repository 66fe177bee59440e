// What kernels of attention share: what a row sees, how its KV is cut, and how parts are put together.
//
// A *pair* is a row and a query head. Its KV is walked in tiles of TILE places and chunks of CHUNK, both counted from KV index 0. Within a
// chunk tiles go through an online softmax (Milakov & Gimelshein 2018) in ascending order; chunks are folded into a total in ascending order.
// So what a pair gets does not depend on who walks the chunks, nor on what else is walked with it.
#pragma once
#include "cache.cuh"

constexpr u32 TILE = 32;
constexpr u32 CHUNK = SPLIT_PLACES;
constexpr u32 TILES_OF_CHUNK = CHUNK / TILE;
constexpr u32 MOST_HEAD_DIM = 256;

DEVICE f32 minus_infinity() { return f32_of_bits(0xff800000); }

// `first .. end`, empty where `end` is not larger.
struct Range {
    u32 first;
    u32 end;
};

DEVICE bool holds(const Range& range, u32 index) { return index >= range.first && index < range.end; }

// The first KV index that a row at `position` sees; it sees all from there to itself.
DEVICE u32 first_seen(u32 position, u32 window) { return window > 0 && position >= window ? position + 1 - window : 0; }

DEVICE Range seen_at(u32 position, u32 window) { return {first_seen(position, window), position + 1}; }

// Chunks that a split walks of those that hold a place of `seen`. Each split has one and the first has those that are left over: they are
// folded first anyway, so that any number of splits gives the same bits.
DEVICE Range chunks_of(const Range& seen, u32 split, u32 splits) {
    const u32 first = seen.first / CHUNK;
    const u32 end = (seen.end - 1) / CHUNK + 1;
    const u32 extra = end - first > splits ? end - first - splits : 0;
    const u32 at = first + split + extra;
    if (split == 0) return {first, at + 1};
    return {at, at < end ? at + 1 : at};
}

// Tiles of these chunks that hold a place of `seen`.
DEVICE Range tiles_of(const Range& seen, const Range& chunks) {
    const u32 first = seen.first / TILE;
    const u32 end = (seen.end - 1) / TILE + 1;
    const u32 from = chunks.first * TILES_OF_CHUNK;
    const u32 to = chunks.end * TILES_OF_CHUNK;
    return {first > from ? first : from, end < to ? end : to};
}

// How scores become weights. Types of 16 bits have them as powers of two, of scores that are multiplied by log2 e with the scale.
template <class T>
struct Softmax {
    static constexpr f32 UNIT = 1.4426950408889634f;
    DEVICE f32 weight(f32 score) { return power_of_two(score); }
};

template <>
struct Softmax<F32> {
    static constexpr f32 UNIT = 1.0f;
    DEVICE f32 weight(f32 score) { return exp_of(score); }
};

// q·k as the softmax takes it.
template <class T>
DEVICE f32 score(f32 product, f32 scale, f32 softcap) {
    if (softcap > 0.0f) return tanh_of(product * (scale * reciprocal(softcap))) * (softcap * Softmax<T>::UNIT);
    return product * (scale * Softmax<T>::UNIT);
}

// What scores are taken relative to: the largest so far, where there is one.
DEVICE f32 base_of(f32 max) { return max == minus_infinity() ? 0.0f : max; }

// How a chunk becomes part of a total. A total keeps its bits where there is nothing in the chunk.
struct Fold {
    f32 max;    // of both
    f32 sum;    // of the chunk
    f32 total;  // factor of what is there
    f32 more;   // factor of what comes
};

template <class T>
DEVICE Fold fold_of(f32 total_max, f32 max, f32 sum) {
    const f32 larger = max > total_max ? max : total_max;
    const f32 base = base_of(larger);
    return {larger, sum, Softmax<T>::weight(total_max - base), Softmax<T>::weight(max - base)};
}

DEVICE f32 folded(const Fold& fold, f32 total, f32 more) {
    return fold.sum == 0.0f ? total : fused(total, fold.total, more * fold.more);
}

// A number of the output; `inverse` is 1 over the sum. Adding zero makes one zero of two, whose sign tiles without a visible place might change.
DEVICE f32 output_of(f32 total, f32 inverse) { return total * inverse + 0.0f; }

// Where a split of a pair keeps its max, its sum and its numbers.
DEVICE f32* partial_of(const AttentionArgs& args, u32 row, u32 head, u32 split) {
    const u64 index = (static_cast<u64>(row) * args.heads + head) * args.splits + split;
    return args.partial + index * (args.kv.head_dim + 2);
}
