// Paged attention where few rows share KV, as in decoding: it is read once, straight into operands, the next keys while a tile is worked on.
//
// A warp has at most PART numbers of the heads of its pairs. A head of more is shared by warps, each of which multiplies its numbers of q and k and
// of p and v; their products are added through shared memory.
#include "attention_tile.cuh"

constexpr u32 STEPS = STEPS_OF_PART;
constexpr u32 COLUMNS = PART / 8;  // products with V

// The block of eight places of a tile; blocks of places that nobody sees are not looked up.
DEVICE u32 block_of(const AttentionArgs& args, const Work& work, const Warp& warp, u32 tile, u32 eight) {
    const u32 place = tile * TILE + eight * 8;
    if (place + 8 <= warp.seen.first || place >= warp.seen.end) return 0;
    return args.step->blocks[work.item.blocks + place / args.kv.block_size];
}

// Keys of a tile as operand B: columns of a lane are two places of each eight, all in one block. Places that nobody sees are zeros.
template <class T>
DEVICE void load_keys(const AttentionArgs& args, const Work& work, const Warp& warp, u32 tile, Piece (&keys)[4][STEPS]) {
    const u32 size = args.kv.block_size;
    const u32 dim = args.kv.head_dim;
    const u32 block = block_of(args, work, warp, tile, lane() / 8);
    const u32 place = tile * TILE + lane() / 8 * 8 + lane() / 4 % 2;
    const u32 at = warp.number + lane() % 4 * 8;
    const typename T::Bits* key = ::keys<T>(args.kv, {block, place % size, size}, work.kv_head) + at;
    for (u32 j = 0; j < 4; j++) {
        for (u32 step = 0; step < STEPS; step++) {
            const bool valid = holds(warp.seen, place + 2 * j) && at + 32 * step < dim;
            keys[j][step] = valid ? load_piece(key + static_cast<u64>(2 * j) * dim + 32 * step) : zeros();
        }
    }
}

// Values of a tile as operand B: eight places of one number in each of the lane's pieces. Places that nobody sees are zeros.
template <class T>
DEVICE void load_values(const AttentionArgs& args, const Work& work, const Warp& warp, u32 tile, u32 block, Piece (&values)[COLUMNS]) {
    const u32 size = args.kv.block_size;
    const u32 place = tile * TILE + lane() % 4 * 8;
    const u32 number = warp.number + lane() / 4;
    const bool any_seen = place + 8 > warp.seen.first && place < warp.seen.end;
    const typename T::Bits* value = value_at<T>(args.kv, {block, place % size, size}, work.kv_head, number);
    for (u32 column = 0; column < COLUMNS; column++) {
        values[column] = any_seen && number + 8 * column < args.kv.head_dim ? load_piece(value + 64 * column) : zeros();
    }
    if (holds(warp.seen, tile * TILE) && holds(warp.seen, tile * TILE + TILE - 1)) return;
    for (u32 column = 0; column < COLUMNS; column++) keep_seen(values[column], warp.seen, place);
}

// Where warps lay out their products with the keys of a tile, two tiles in turn, so that one barrier a tile will do.
DEVICE Piece* board_of(u32 turn, u32 of_warp) {
    static_assert(ATTENTION_WARP_SHARED == 2 * 128 * sizeof(Piece), "two tiles of a warp");
    const u32 warps = block_threads() / 32;
    return reinterpret_cast<Piece*>(shared_bytes()) + (turn % 2 * warps + of_warp) * 128 + lane();
}

DEVICE void lay_out(u32 turn, const f32 (&products)[4][4]) {
    Piece* board = board_of(turn, warp());
    for (u32 j = 0; j < 4; j++) {
        Piece piece;
        for (u32 i = 0; i < 4; i++) piece.word[i] = bits_of(products[j][i]);
        store_piece(board + 32 * j, piece);
    }
}

DEVICE void add_up(u32 turn, u32 parts, f32 (&products)[4][4]) {
    const u32 first = warp() / parts * parts;
    for (u32 part = 0; part < parts; part++) {
        const Piece* board = board_of(turn, first + part);
        for (u32 j = 0; j < 4; j++) {
            const Piece piece = board[32 * j];
            for (u32 i = 0; i < 4; i++) {
                const f32 product = f32_of_bits(piece.word[i]);
                products[j][i] = part == 0 ? product : products[j][i] + product;
            }
        }
    }
}

// Whether a pair would get NaN from a place that it does not see.
template <class T>
DEVICE bool spoils(const Warp& warp, u32 tile, const Piece (&values)[COLUMNS]) {
    if (!parts_pairs(warp, tile)) return false;
    f32 sums[4] = {};
    for (u32 column = 0; column < COLUMNS; column++) probe<T>(sums, values[column]);
    return found_any<T>(sums);
}

// As `add_values`, with what each pair sees for it alone.
template <class T>
DEVICE void add_values_apart(const AttentionArgs& args, const Work& work, const Warp& warp, u32 tile, const f32 (&factors)[2],
                             const u32 (&weights)[2][4], const Piece (&values)[COLUMNS], Sums<COLUMNS>& sums) {
    for (u32 i = 0; i < 4 * COLUMNS; i++) sums.numbers[i / 4][i % 4] *= factors[i % 4 / 2];
    for (u32 pair = 0; pair < PAIRS; pair++) {
        const Range seen = seen_by_pair(args, work, warp, pair);
        for (u32 column = 0; column < COLUMNS; column++) multiply_for_pair<T>(pair, seen, tile, weights, values[column], sums.numbers[column]);
    }
}

// Adds the weighted values of a tile. Where no maximum has changed, all factors are 1 and there is nothing to scale.
template <class T>
DEVICE void add_values(const AttentionArgs& args, const Work& work, const Warp& warp, u32 tile, const f32 (&factors)[2], const u32 (&weights)[2][4],
                       const Piece (&values)[COLUMNS], Sums<COLUMNS>& sums) {
    const bool scales = any_lane(factors[0] != 1.0f || factors[1] != 1.0f);
    if (spoils<T>(warp, tile, values)) return add_values_apart<T>(args, work, warp, tile, factors, weights, values, sums);
    for (u32 column = 0; column < COLUMNS; column++) {
        for (u32 i = 0; i < 4 && scales; i++) sums.numbers[column][i] *= factors[i / 2];
        multiply<T>(sums.numbers[column], weights[0], weights[1], values[column]);
    }
}

// Keys on their way to the next tile, and the block where its values are.
struct Next {
    Piece keys[4][STEPS];
    u32 block;
};

template <class T>
DEVICE void send_for(const AttentionArgs& args, const Work& work, const Warp& warp, u32 tile, Next& next) {
    next.block = block_of(args, work, warp, tile, lane() % 4);
    load_keys<T>(args, work, warp, tile, next.keys);
}

// The products of a tile with the warp's numbers, laid out where there are other warps with others.
template <class T>
DEVICE void multiply_keys(u32 parts, u32 tile, const u32 (&queries)[2][STEPS][4], const Piece (&keys)[4][STEPS], f32 (&products)[4][4]) {
    for (u32 step = 0; step < STEPS; step++) {
        for (u32 j = 0; j < 4; j++) multiply<T>(products[j], queries[0][step], queries[1][step], keys[j][step]);
    }
    if (parts > 1) lay_out(tile, products);
}

template <class T>
DEVICE void attend(const AttentionArgs& args, const Work& work, const Warp& warp, u32 parts, u32 tile, f32 (&products)[4][4],
                   const Piece (&values)[COLUMNS], Sums<COLUMNS>& chunk) {
    if (parts > 1) add_up(tile, parts, products);
    f32 factors[2];
    u32 weights[2][4];
    for (u32 i = 0; i < 2; i++) factors[i] = soften<T>(args, warp, tile, i, products, chunk, weights[i]);
    add_values<T>(args, work, warp, tile, factors, weights, values, chunk);
}

// One tile, which all warps of the block come to together; each works on its own.
template <class T>
DEVICE void walk_tile(const AttentionArgs& args, const Work& work, const Warp& warp, u32 parts, u32 tile, const u32 (&queries)[2][STEPS][4],
                      Next& next, Sums<COLUMNS>& chunk) {
    f32 products[4][4] = {};
    Piece values[COLUMNS];
    load_values<T>(args, work, warp, tile, next.block, values);
    multiply_keys<T>(parts, tile, queries, next.keys, products);
    send_for<T>(args, work, warp, tile + 1, next);
    block_sync();
    attend<T>(args, work, warp, parts, tile, products, values, chunk);
}

// Walks the tiles of `all`, among them those of the warp, chunk by chunk.
template <class T>
DEVICE void walk(const AttentionArgs& args, const Work& work, const Warp& warp, u32 parts, const Range& all) {
    u32 queries[2][STEPS][4];
    load_queries<T>(args, work, warp, queries);
    Total total = no_total();
    Next next = {};
    send_for<T>(args, work, warp, all.first, next);
    for (Range tiles = first_chunk(all); tiles.first < tiles.end; tiles = next_chunk(all, tiles)) {
        Sums<COLUMNS> chunk;
        clear(chunk);
        for (u32 tile = tiles.first; tile < tiles.end; tile++) walk_tile<T>(args, work, warp, parts, tile, queries, next, chunk);
        fold<T>(args, work, warp, tiles, total, chunk);
    }
    store_total(args, work, warp, total);
}

// Semantics, per row at KV index p and query head h: `y[r, h, :] = Σ_j softmax_j(cap(scale * q·k_j)) v_j` over the visible j (causal, window), K
// and V read from the cache in T. q and the weights of the softmax (relative to the largest score so far) are rounded to T, nearest even;
// products, scores, exponentials and sums are f32. Where `splits` is 1, y is written in both forms; else split z of a pair is written to
// `partial` and `combine_attention` makes y of them, with the same bits.
//
// head_dim a multiple of 8 up to 256, block_size at least 8, items of any number of rows. Places that a row does not see, of its sequence and
// behind it, change no bit of its y, whatever they hold: K and V there need not be finite.
//
// Blocks of up to ATTENTION_WARPS warps: a warp for every part of 64 numbers of a head, for each of one or more tiles of 16 pairs. Grid: x at least
// items * KV heads, y at least the pairs of a KV head in an item by those of a block, z = `splits`. Shared bytes: ATTENTION_WARP_SHARED for every
// warp where a head has several parts, else none.
template <class T>
DEVICE void attention(const AttentionArgs& args) {
    const u32 parts = (args.kv.head_dim + PART - 1) / PART;
    const u32 at_once = block_threads() / 32 / parts;
    const u32 here = agreed(warp());
    const Work work = work_of(args);
    const u32 first = block_index_y() * at_once * PAIRS;
    const Warp of_warp = warp_of(args, work, first + here / parts * PAIRS, here % parts * PART);
    walk<T>(args, work, of_warp, parts, tiles_of_block(args, work, first, at_once));
}

KERNEL(attention_bf16, 256, AttentionArgs) { attention<Bf16>(args); }
KERNEL(attention_f16, 256, AttentionArgs) { attention<F16>(args); }
