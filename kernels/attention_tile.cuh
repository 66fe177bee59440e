// What a warp does with 16 pairs on tensor cores, whoever reads K and V for it.
//
// The pairs are of one item and share a KV head (the heads of a row first, then the next rows): they are the rows of operand A. Column 2t + e of
// the product with keys j stands for place t*8 + j*2 + e of a tile, so that weights are operand A as they lie, and a piece of V is operand B.
#pragma once
#include "attention.cuh"

constexpr u32 PAIRS = ATTENTION_PAIRS;
static_assert(PAIRS == 16, "the rows of operand A");

// The products q·k are sums over PART numbers of a head each, added in ascending order.
constexpr u32 PART = ATTENTION_PART;
constexpr u32 STEPS_OF_PART = PART / 32;  // of 32 numbers: a piece of q or k for a lane

// Rows of an item with the query heads of a KV head.
struct Work {
    AttentionItem item;
    u32 kv_head;
    u32 group;  // query heads
    u32 pairs;
};

// What all lanes of a warp know alike, said so that the compiler knows it too: where it must think that lanes have parted, shuffles become calls
// that few registers outlive.
DEVICE bool agreed(bool holds) { return any_lane(holds); }
DEVICE u32 agreed(u32 value) { return shuffle(value, 0); }

// That of a block: no pairs where there are fewer items than blocks.
DEVICE Work work_of(const AttentionArgs& args) {
    const u32 at = block_index_x() / args.kv.kv_heads;
    const bool exists = at < args.step->items;
    const AttentionItem item = args.step->item[exists ? at : 0];
    Work work = {{}, block_index_x() % args.kv.kv_heads, args.heads / args.kv.kv_heads, 0};
    work.item = {agreed(item.row), agreed(exists ? item.rows : 0), agreed(item.position), agreed(item.blocks)};
    work.pairs = work.item.rows * work.group;
    return work;
}

// The pairs of a warp, and where it is.
struct Warp {
    u32 first;     // pair
    u32 number;    // the first number of their head that it has
    Range seen;    // by any of them
    Range common;  // by all of them; empty where `end` is not larger
    Range tiles;   // to walk
    u32 position[2];  // of the two pairs of the lane
};

// Sums over places: pair 0 of the lane in the first two numbers of each column, pair 1 in the others.
template <u32 COLUMNS>
struct Sums {
    f32 max[2];
    f32 sum[2];
    f32 numbers[COLUMNS][4];
};

template <u32 COLUMNS>
DEVICE void clear(Sums<COLUMNS>& sums) {
    sums = {};
    sums.max[0] = sums.max[1] = minus_infinity();
}

DEVICE u32 position_of(const Work& work, u32 pair) { return work.item.position + (pair < work.pairs ? pair : work.pairs - 1) / work.group; }

// What the pairs from `first` to `last` see between them; pairs behind the last see what it sees.
DEVICE Range seen_by(const AttentionArgs& args, const Work& work, u32 first, u32 last) {
    return {first_seen(position_of(work, first), args.window), position_of(work, last) + 1};
}

// What the 16 pairs from `first` on have of a split.
DEVICE Range tiles_by(const AttentionArgs& args, const Work& work, u32 first) {
    const Range seen = seen_by(args, work, first, first + PAIRS - 1);
    const Range tiles = tiles_of(seen, chunks_of(seen, block_index_z(), args.splits));
    return {agreed(tiles.first), agreed(tiles.end)};
}

// What any of `at_once` warps with pairs from `first` on walks.
DEVICE Range tiles_of_block(const AttentionArgs& args, const Work& work, u32 first, u32 at_once) {
    const u32 end = first + at_once * PAIRS < work.pairs ? first + at_once * PAIRS : work.pairs;
    const Range tiles = {tiles_by(args, work, first).first, tiles_by(args, work, (end - 1) / PAIRS * PAIRS).end};
    return first < work.pairs ? tiles : Range{0, 0};
}

// Those of `all` that are in its first chunk, and in the chunk behind `tiles`.
DEVICE Range chunk_from(const Range& all, u32 tile) {
    const u32 end = (tile / TILES_OF_CHUNK + 1) * TILES_OF_CHUNK;
    return {tile, end < all.end ? end : all.end};
}

DEVICE Range first_chunk(const Range& all) { return chunk_from(all, all.first); }
DEVICE Range next_chunk(const Range& all, const Range& tiles) { return chunk_from(all, tiles.end); }

// Pairs that do not exist have queries of zeros; a warp without any sees nothing.
DEVICE Warp warp_of(const AttentionArgs& args, const Work& work, u32 first, u32 number) {
    const bool exists = first < work.pairs;
    const Range seen = seen_by(args, work, first, first + PAIRS - 1);
    const Range tiles = tiles_by(args, work, first);
    const Range common = {first_seen(seen.end - 1, args.window), position_of(work, first) + 1};
    Warp warp = {first, number, exists ? seen : Range{0, 0}, exists ? common : Range{0, 0}, exists ? tiles : Range{0, 0}, {0, 0}};
    for (u32 i = 0; i < 2; i++) warp.position[i] = position_of(work, first + lane() / 4 + 8 * i);
    return warp;
}

DEVICE Piece zeros() { return {{0, 0, 0, 0}}; }

// Operand A of a step has words 2 * half and 2 * half + 1 of two pieces, operand B those of one.
template <class T>
DEVICE void multiply(f32 (&d)[4], const u32 (&low)[4], const u32 (&high)[4], const Piece& b) {
    for (u32 half = 0; half < 2; half++) {
        const u32 of_a[4] = {low[2 * half], high[2 * half], low[2 * half + 1], high[2 * half + 1]};
        const u32 of_b[2] = {b.word[2 * half], b.word[2 * half + 1]};
        T::mma(d, of_a, of_b);
    }
}

// The queries of the lane's two pairs, rounded to T; zeros for pairs that do not exist and behind the head.
template <class T, u32 STEPS>
DEVICE void load_queries(const AttentionArgs& args, const Work& work, const Warp& warp, u32 (&queries)[2][STEPS][4]) {
    for (u32 i = 0; i < 2; i++) {
        const u32 pair = warp.first + lane() / 4 + 8 * i;
        const u32 head = work.kv_head * work.group + pair % work.group;
        const f32* q = row_of(args.qkv, work.item.row + pair / work.group) + static_cast<u64>(head) * args.kv.head_dim;
        for (u32 step = 0; step < STEPS; step++) {
            const u32 at = warp.number + step * 32 + lane() % 4 * 8;
            const bool valid = pair < work.pairs && at < args.kv.head_dim;
            const Piece low = valid ? load_piece(q + at) : zeros();
            const Piece high = valid ? load_piece(q + at + 4) : zeros();
            for (u32 word = 0; word < 2; word++) {
                queries[i][step][word] = T::pack(f32_of_bits(low.word[2 * word]), f32_of_bits(low.word[2 * word + 1]));
                queries[i][step][2 + word] = T::pack(f32_of_bits(high.word[2 * word]), f32_of_bits(high.word[2 * word + 1]));
            }
        }
    }
}

// Bit i where place + i is seen, for i below 8.
DEVICE u32 seen_of_eight(const Range& seen, u32 place) {
    const u32 first = seen.first > place ? seen.first - place : 0;
    const u32 end = seen.end > place ? seen.end - place : 0;
    return first < 8 ? (0xffu << first) & ((1u << (end < 8 ? end : 8)) - 1) : 0;
}

// Of eight values, from `place` on, those that are seen; zeros for others: a weight of zero would make NaN of one that is not finite.
DEVICE void keep_seen(Piece& values, const Range& seen, u32 place) {
    for (u32 word = 0; word < 4; word++) {
        const u32 low = holds(seen, place + 2 * word) ? 0x0000ffffu : 0;
        const u32 high = holds(seen, place + 2 * word + 1) ? 0xffff0000u : 0;
        values.word[word] &= low | high;
    }
}

// Whether some of the warp's pairs see a place of a tile that others do not see.
DEVICE bool parts_pairs(const Warp& warp, u32 tile) {
    const u32 first = tile * TILE > warp.seen.first ? tile * TILE : warp.seen.first;
    const u32 end = tile * TILE + TILE < warp.seen.end ? tile * TILE + TILE : warp.seen.end;
    return first < warp.common.first || end > warp.common.end;
}

// Adds zero times the values of all lanes.
template <class T>
DEVICE void probe(f32 (&sums)[4], const Piece& values) {
    const u32 nothing[4] = {0, 0, 0, 0};
    multiply<T>(sums, nothing, nothing, values);
}

// Whether a value that was probed is not finite: all rows of the sums are alike, so one more product tells all lanes. A vote would tell them too,
// but behind a branch it becomes a call on sm_80, which few registers outlive.
template <class T>
DEVICE bool found_any(const f32 (&sums)[4]) {
    const u32 row = T::pack(sums[0], sums[1]);
    const u32 rows[4] = {row, row, 0, 0};
    const u32 nothing[2] = {0, 0};
    f32 of_all[4] = {};
    T::mma(of_all, rows, nothing);
    return of_all[0] != of_all[0];
}

// What a pair of the warp sees.
DEVICE Range seen_by_pair(const AttentionArgs& args, const Work& work, const Warp& warp, u32 pair) {
    return seen_at(position_of(work, warp.first + pair), args.window);
}

// Adds the weighted values of a tile to the sums of one pair of the warp, with zeros for those that it does not see.
template <class T>
DEVICE void multiply_for_pair(u32 pair, const Range& seen, u32 tile, const u32 (&weights)[2][4], Piece values, f32 (&sums)[4]) {
    keep_seen(values, seen, tile * TILE + lane() % 4 * 8);
    f32 of_pair[4] = {sums[0], sums[1], sums[2], sums[3]};
    multiply<T>(of_pair, weights[0], weights[1], values);
    for (u32 i = 0; i < 4; i++) sums[i] = lane() / 4 + i / 2 * 8 == pair ? of_pair[i] : sums[i];
}

// The largest of the four lanes that share the lane's pairs.
DEVICE f32 quad_max(f32 value) {
    for (u32 mask = 1; mask < 4; mask *= 2) {
        const f32 other = shuffle_xor(value, mask);
        value = other > value ? other : value;
    }
    return value;
}

DEVICE f32 quad_sum(f32 value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

// One step of the online softmax for pair `i` of the lane: products become weights, rounded to T and packed as operand A. `sum` is of the rounded
// weights, since these are what V is multiplied with. Returns what sums so far are multiplied by.
template <class T, u32 COLUMNS>
DEVICE f32 soften(const AttentionArgs& args, const Warp& warp, u32 tile, u32 i, f32 (&products)[4][4], Sums<COLUMNS>& sums, u32 (&weights)[4]) {
    const u32 seen = seen_of_eight(seen_at(warp.position[i], args.window), tile * TILE + lane() % 4 * 8);
    f32 max = sums.max[i];
    for (u32 at = 0; at < 8; at++) {
        f32& number = products[at / 2][2 * i + at % 2];
        number = seen >> at & 1 ? score<T>(number, args.scale, args.softcap) : minus_infinity();
        max = number > max ? number : max;
    }
    max = quad_max(max);
    const f32 base = base_of(max);
    const f32 factor = Softmax<T>::weight(sums.max[i] - base);
    f32 sum = 0.0f;
    for (u32 j = 0; j < 4; j++) {
        weights[j] = T::pack(Softmax<T>::weight(products[j][2 * i] - base), Softmax<T>::weight(products[j][2 * i + 1] - base));
        sum += T::widen(static_cast<u16>(weights[j]));
        sum += T::widen(static_cast<u16>(weights[j] >> 16));
    }
    sums.max[i] = max;
    sums.sum[i] = sums.sum[i] * factor + quad_sum(sum);
    return factor;
}

// One of the lane's two pairs, and where its numbers go and wait between chunks: its row of y, or the place of its split. Each lane reads
// there what it wrote itself.
struct Target {
    u32 row;
    u32 head;
    f32* numbers;  // null for a pair that does not exist
};

DEVICE Target target_of(const AttentionArgs& args, const Work& work, const Warp& warp, u32 i) {
    const u32 pair = afresh(warp.first) + lane() / 4 + 8 * i;
    Target target = {work.item.row + pair / work.group, work.kv_head * work.group + pair % work.group, nullptr};
    if (pair >= work.pairs) return target;
    if (args.splits > 1) target.numbers = partial_of(args, target.row, target.head, block_index_z()) + 2;
    else target.numbers = row_of(args.y, target.row) + target.head * args.kv.head_dim;
    return target;
}

// What the pairs of a lane have of the chunks so far, but for their numbers.
struct Total {
    f32 max[2];
    f32 sum[2];
};

DEVICE Total no_total() { return {{minus_infinity(), minus_infinity()}, {0.0f, 0.0f}}; }

// Puts two numbers of a chunk into those of the total; behind the last chunk y gets what comes out, in both forms.
template <class T>
DEVICE void fold_numbers(const AttentionArgs& args, const Target& target, u32 number, const Fold& fold, bool before, bool done, f32 inverse,
                         const f32 (&more)[2]) {
    HalfPiece* at = reinterpret_cast<HalfPiece*>(target.numbers + number);
    HalfPiece numbers = {{0, 0}};
    if (before) numbers = *at;
    f32 result[2];
    for (u32 e = 0; e < 2; e++) {
        result[e] = folded(fold, f32_of_bits(numbers.word[e]), more[e]);
        if (done) result[e] = output_of(result[e], inverse);
    }
    *at = {{bits_of(result[0]), bits_of(result[1])}};
    if (!done || !args.y.input) return;
    const u64 index = static_cast<u64>(target.row) * args.y.input_stride + target.head * args.kv.head_dim + number;
    static_cast<u32*>(args.y.input)[index / 2] = T::pack(result[0], result[1]);
}

// Puts a chunk into the total of pair `i` of the lane.
template <class T, u32 i, u32 COLUMNS>
DEVICE void fold_pair(const AttentionArgs& args, const Work& work, const Warp& warp, bool last, Total& total, const Sums<COLUMNS>& chunk) {
    const Target target = target_of(args, work, warp, i);
    const bool before = total.sum[i] != 0.0f;
    const Fold fold = fold_of<T>(total.max[i], chunk.max[i], chunk.sum[i]);
    total.max[i] = fold.max;
    total.sum[i] = folded(fold, total.sum[i], fold.sum);
    const bool done = last && args.splits == 1;
    const f32 inverse = reciprocal(total.sum[i]);
    for (u32 column = 0; column < COLUMNS; column++) {
        const u32 number = warp.number + column * 8 + lane() % 4 * 2;
        const f32 more[2] = {chunk.numbers[column][2 * i], chunk.numbers[column][2 * i + 1]};
        if (target.numbers && number < args.kv.head_dim) fold_numbers<T>(args, target, number, fold, before, done, inverse, more);
    }
}

// Puts the chunk of `tiles` into the totals of a warp that walks some of them; one that came along for others to walk is left out.
template <class T, u32 COLUMNS>
DEVICE void fold(const AttentionArgs& args, const Work& work, const Warp& warp, const Range& tiles, Total& total, const Sums<COLUMNS>& chunk) {
    if (tiles.first >= warp.tiles.end || tiles.end <= warp.tiles.first) return;
    const bool last = holds(tiles, warp.tiles.end - 1);
    fold_pair<T, 0>(args, work, warp, last, total, chunk);
    fold_pair<T, 1>(args, work, warp, last, total, chunk);
}

// The max and the sum of a split; zero where it has nothing, and no numbers then.
DEVICE void store_total(const AttentionArgs& args, const Work& work, const Warp& warp, const Total& total) {
    if (args.splits == 1 || warp.number > 0 || lane() % 4 > 0) return;
    for (u32 i = 0; i < 2; i++) {
        const Target target = target_of(args, work, warp, i);
        if (!target.numbers) continue;
        target.numbers[-2] = total.max[i];
        target.numbers[-1] = total.sum[i];
    }
}

