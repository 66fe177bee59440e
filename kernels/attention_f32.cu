// Paged attention in f32, and what puts splits together: a warp for every pair.
#include "attention.cuh"

constexpr u32 NUMBERS = MOST_HEAD_DIM / 32;  // of a head for every lane: lane, lane + 32, ..

struct PairSums {
    f32 max;
    f32 sum;
    f32 numbers[NUMBERS];
};

DEVICE PairSums no_sums() {
    PairSums sums = {};
    sums.max = minus_infinity();
    return sums;
}

template <class T>
DEVICE void fold_in(PairSums& total, const PairSums& more) {
    const Fold fold = fold_of<T>(total.max, more.max, more.sum);
    total.max = fold.max;
    total.sum = folded(fold, total.sum, fold.sum);
    for (u32 i = 0; i < NUMBERS; i++) total.numbers[i] = folded(fold, total.numbers[i], more.numbers[i]);
}

// Writes the output of a pair in both forms.
template <class T>
DEVICE void store_pair(const Rows& y, u32 row, u32 head, u32 dim, const PairSums& total) {
    const f32 inverse = reciprocal(total.sum);
    for (u32 i = 0; i < NUMBERS; i++) {
        const u32 number = lane() + 32 * i;
        if (number >= dim) break;
        const f32 result = output_of(total.numbers[i], inverse);
        row_of(y, row)[head * dim + number] = result;
        typename T::Bits* input = static_cast<typename T::Bits*>(y.input);
        if (input) input[static_cast<u64>(row) * y.input_stride + head * dim + number] = T::narrow(result);
    }
}

// A pair with the KV of its sequence.
struct PairWork {
    const u32* blocks;
    u32 kv_head;
    const f32* q;
    Range seen;
};

DEVICE f32 product_of(const AttentionArgs& args, const PairWork& work, const Place& place) {
    const f32* k = keys<F32>(args.kv, place, work.kv_head);
    const u32 width = quad_width(args.kv.head_dim);
    f32 sum = 0.0f;
    for (u32 at = 0; at < args.kv.head_dim; at += width) {
        const Quad q = load_quad(work.q + at, width);
        const Quad key = load_quad(k + at, width);
        for (u32 i = 0; i < 4; i++) sum = fused(q.at[i], key.at[i], sum);  // zeros behind a single number
    }
    return sum;
}

// One step of the online softmax. A lane has the weight of one place; places that are not seen are left out of the sums.
DEVICE void walk_tile(const AttentionArgs& args, const PairWork& work, u32 tile, PairSums& sums) {
    const u32 size = args.kv.block_size;
    const u32 place = tile * TILE + lane();
    const bool sees = holds(work.seen, place);
    const u32 block = sees ? work.blocks[place / size] : 0;
    f32 number = minus_infinity();
    if (sees) number = score<F32>(product_of(args, work, {block, place % size, size}), args.scale, args.softcap);
    const f32 tile_max = warp_max(number);
    const f32 max = tile_max > sums.max ? tile_max : sums.max;
    const f32 factor = exp_of(sums.max - base_of(max));
    const f32 weight = exp_of(number - base_of(max));
    sums.max = max;
    sums.sum = sums.sum * factor + warp_sum(weight);
    for (f32& sum : sums.numbers) sum *= factor;
    for (u32 other = 0; other < TILE; other++) {
        const f32 of_other = shuffle(weight, other);
        const u32 at = tile * TILE + other;
        const Place there = {shuffle(block, other), at % size, size};
        if (!holds(work.seen, at)) continue;
        for (u32 i = 0; i < NUMBERS; i++) {
            const u32 column = lane() + 32 * i;
            if (column >= args.kv.head_dim) break;
            sums.numbers[i] = fused(of_other, *value_at<F32>(args.kv, there, work.kv_head, column), sums.numbers[i]);
        }
    }
}

// Semantics: as attention_bf16, with nothing rounded: q, K, V, weights and sums are f32.
//
// head_dim up to 256, any block_size, items of any number of rows. Blocks of 256 threads. Grid: x for items and query heads, y for 8 rows of an
// item, both any number, z = `splits`. No shared memory.
KERNEL(attention_f32, 256, AttentionArgs) {
    const u32 dim = args.kv.head_dim;
    const u32 warps = block_threads() / 32;
    for (u32 i = block_index_x(); i < args.step->items * args.heads; i += grid_x()) {
        const AttentionItem item = args.step->item[i / args.heads];
        const u32 head = i % args.heads;
        for (u32 at = block_index_y() * warps + warp(); at < item.rows; at += grid_y() * warps) {
            const u32 row = item.row + at;
            const PairWork work = {args.step->blocks + item.blocks, head / (args.heads / args.kv.kv_heads),
                                   row_of(args.qkv, row) + head * dim, seen_at(item.position + at, args.window)};
            const Range chunks = chunks_of(work.seen, block_index_z(), args.splits);
            PairSums total = no_sums();
            for (u32 chunk = chunks.first; chunk < chunks.end; chunk++) {
                const Range tiles = tiles_of(work.seen, {chunk, chunk + 1});
                PairSums sums = no_sums();
                for (u32 tile = tiles.first; tile < tiles.end; tile++) walk_tile(args, work, tile, sums);
                fold_in<F32>(total, sums);
            }
            if (args.splits == 1) {
                store_pair<F32>(args.y, row, head, dim, total);
                continue;
            }
            f32* partial = partial_of(args, row, head, block_index_z());
            partial[0] = total.max;
            partial[1] = total.sum;
            for (u32 number = 0; number < NUMBERS; number++) {
                if (lane() + 32 * number < dim) partial[2 + lane() + 32 * number] = total.numbers[number];
            }
        }
    }
}

// Semantics: y of each row and query head, in both forms, from the splits of its KV in `partial`, folded in ascending order, with the bits that
// attention of the same type writes where `splits` is 1. A warp for every row and head, any grid in x, no shared memory.
template <class T>
DEVICE void combine_attention(const AttentionArgs& args) {
    const u32 dim = args.kv.head_dim;
    const u32 warps = block_threads() / 32;
    for (u32 i = block_index_x() * warps + warp(); i < args.step->rows * args.heads; i += grid_x() * warps) {
        const u32 row = i / args.heads;
        const u32 head = i % args.heads;
        PairSums total = no_sums();
        for (u32 split = 0; split < args.splits; split++) {
            const f32* partial = partial_of(args, row, head, split);
            if (partial[1] == 0.0f) continue;  // it has no numbers either
            PairSums more = {partial[0], partial[1], {}};
            for (u32 number = 0; number < NUMBERS; number++) {
                if (lane() + 32 * number < dim) more.numbers[number] = partial[2 + lane() + 32 * number];
            }
            fold_in<T>(total, more);
        }
        store_pair<T>(args.y, row, head, dim, total);
    }
}

KERNEL(combine_attention_bf16, 256, AttentionArgs) { combine_attention<Bf16>(args); }
KERNEL(combine_attention_f16, 256, AttentionArgs) { combine_attention<F16>(args); }
KERNEL(combine_attention_f32, 256, AttentionArgs) { combine_attention<F32>(args); }
