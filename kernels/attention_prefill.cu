// Paged attention where many rows share KV, as in prefill: the warps of a block read it together, through shared memory, each for 16 pairs
// of its own.
#include "attention_tile.cuh"

constexpr u32 WARPS = 8;
constexpr u32 STAGES = 3;  // tiles in shared memory: one that is worked on, and what is on its way
constexpr u32 MOST_PARTS = 2;
constexpr u32 MOST_COLUMNS = MOST_PARTS * PART / 8;

static_assert(WARPS == ATTENTION_WARPS && WARPS * PAIRS == PREFILL_PAIRS && MOST_PARTS * PART == PREFILL_HEAD_DIM, "blocks are as abi.cuh says");
static_assert(STAGES * 4 * TILE == PREFILL_NUMBER_SHARED, "K and V of a tile in every stage");

// A stage has K as [place][head_dim] and V as [place / 8][head_dim][8 places]. The pieces of a row of K are permuted where its place is odd, and
// those of V by its eight places, so that the eight lanes that read at a time meet no bank twice.
struct Stage {
    u8* k;
    u8* v;
};

DEVICE Stage stage_of(u32 tile, u32 dim) {
    u8* first = shared_bytes() + tile % STAGES * (4 * TILE * dim);
    return {first, first + 2 * TILE * dim};
}

DEVICE u8* key_piece(const Stage& stage, u32 dim, u32 place, u32 piece) {
    // Rows of a few pieces have no other half to change for.
    const u32 half = dim % 64 == 0 ? place % 2 * 4 : 0;
    return stage.k + (place * (dim / 8) + (piece ^ half)) * 16;
}

DEVICE u8* value_piece(const Stage& stage, u32 dim, u32 eight, u32 number) { return stage.v + (eight * dim + (number ^ eight * 2)) * 16; }

// Sends for a tile of `seen`, places that nobody sees as zeros. Eight threads bring the keys of a place, two warps the values of eight places.
template <class T>
DEVICE void send_for(const AttentionArgs& args, const Work& work, const Range& seen, u32 tile) {
    const u32 size = args.kv.block_size;
    const u32 dim = args.kv.head_dim;
    const u32* blocks = args.step->blocks + work.item.blocks;
    const Stage stage = stage_of(tile, dim);
    const u32 place = thread_index() / WARPS;
    const u32 at = tile * TILE + place;
    const bool valid = holds(seen, at);
    const typename T::Bits* key = valid ? keys<T>(args.kv, {blocks[at / size], at % size, size}, work.kv_head) : nullptr;
    for (u32 piece = thread_index() % WARPS; piece < dim / 8; piece += WARPS) {
        copy_async_16(key_piece(stage, dim, place, piece), key + 8 * piece, valid);
    }
    const u32 eight = thread_index() / 64;
    const u32 first = tile * TILE + eight * 8;
    const bool any_valid = first + 8 > seen.first && first < seen.end;
    const typename T::Bits* value = any_valid ? value_at<T>(args.kv, {blocks[first / size], first % size, size}, work.kv_head, 0) : nullptr;
    for (u32 number = thread_index() % 64; number < dim; number += 64) {
        copy_async_16(value_piece(stage, dim, eight, number), value + 8 * number, any_valid);
    }
}

DEVICE Piece read_piece(const u8* from) { return *reinterpret_cast<const Piece*>(from); }

// The products of the warp's queries with the keys of a tile, with the sums that warps of `attention` share.
template <class T>
DEVICE void multiply_keys(const Stage& stage, u32 dim, const u32 (&queries)[2][MOST_PARTS * STEPS_OF_PART][4], f32 (&products)[4][4]) {
    const u32 place = lane() / 8 * 8 + lane() / 4 % 2;
    for (u32 part = 0; part < MOST_PARTS; part++) {
        if (part * PART >= dim) continue;
        f32 of_part[4][4] = {};
        for (u32 step = part * STEPS_OF_PART; step < (part + 1) * STEPS_OF_PART; step++) {
            if (step * 32 >= dim) continue;
            const u32 piece = step * 4 + lane() % 4;
            for (u32 j = 0; j < 4; j++) {
                const Piece key = piece * 8 < dim ? read_piece(key_piece(stage, dim, place + 2 * j, piece)) : zeros();
                multiply<T>(of_part[j], queries[0][step], queries[1][step], key);
            }
        }
        for (u32 i = 0; i < 16; i++) {
            f32& product = products[i / 4][i % 4];
            product = part == 0 ? of_part[i / 4][i % 4] : product + of_part[i / 4][i % 4];
        }
    }
}

DEVICE Piece read_values(const Stage& stage, u32 dim, u32 column) {
    return read_piece(value_piece(stage, dim, lane() % 4, column * 8 + lane() / 4));
}

// Whether a pair would get NaN from a place that it does not see.
template <class T>
DEVICE bool spoils(const Warp& warp, u32 tile, const Stage& stage, u32 dim) {
    if (!parts_pairs(warp, tile)) return false;
    f32 sums[4] = {};
    for (u32 column = 0; column < MOST_COLUMNS; column++) {
        if (column * 8 >= dim) continue;
        Piece values = read_values(stage, dim, column);
        keep_seen(values, warp.seen, tile * TILE + lane() % 4 * 8);
        probe<T>(sums, values);
    }
    return found_any<T>(sums);
}

// As `multiply_values`, with what each pair sees for it alone.
template <class T>
DEVICE void multiply_values_apart(const AttentionArgs& args, const Work& work, const Warp& warp, u32 tile, const f32 (&factors)[2],
                                  const u32 (&weights)[2][4], Sums<MOST_COLUMNS>& sums) {
    const u32 dim = args.kv.head_dim;
    const Stage stage = stage_of(tile, dim);
    for (u32 i = 0; i < 4 * MOST_COLUMNS; i++) sums.numbers[i / 4][i % 4] *= factors[i % 4 / 2];
    for (u32 pair = 0; pair < PAIRS; pair++) {
        const Range seen = seen_by_pair(args, work, warp, pair);
        for (u32 column = 0; column < MOST_COLUMNS; column++) {
            if (column * 8 >= dim) continue;
            multiply_for_pair<T>(pair, seen, tile, weights, read_values(stage, dim, column), sums.numbers[column]);
        }
    }
}

template <class T>
DEVICE void multiply_values(const AttentionArgs& args, const Work& work, const Warp& warp, u32 tile, const f32 (&factors)[2],
                            const u32 (&weights)[2][4], Sums<MOST_COLUMNS>& sums) {
    const u32 dim = args.kv.head_dim;
    const Stage stage = stage_of(tile, dim);
    const Range seen = warp.seen;
    const bool whole = holds(seen, tile * TILE) && holds(seen, tile * TILE + TILE - 1);
    const bool scales = any_lane(factors[0] != 1.0f || factors[1] != 1.0f);
    if (spoils<T>(warp, tile, stage, dim)) return multiply_values_apart<T>(args, work, warp, tile, factors, weights, sums);
    for (u32 column = 0; column < MOST_COLUMNS; column++) {
        if (column * 8 >= dim) continue;
        Piece values = read_values(stage, dim, column);
        if (!whole) keep_seen(values, seen, tile * TILE + lane() % 4 * 8);
        for (u32 i = 0; i < 4 && scales; i++) sums.numbers[column][i] *= factors[i / 2];
        multiply<T>(sums.numbers[column], weights[0], weights[1], values);
    }
}

template <class T>
DEVICE void work_on_tile(const AttentionArgs& args, const Work& work, const Warp& warp, u32 tile,
                         const u32 (&queries)[2][MOST_PARTS * STEPS_OF_PART][4], Sums<MOST_COLUMNS>& chunk) {
    f32 products[4][4];
    multiply_keys<T>(stage_of(tile, args.kv.head_dim), args.kv.head_dim, queries, products);
    f32 factors[2];
    u32 weights[2][4];
    for (u32 i = 0; i < 2; i++) factors[i] = soften<T>(args, warp, tile, i, products, chunk, weights[i]);
    multiply_values<T>(args, work, warp, tile, factors, weights, chunk);
}

// All warps walk the tiles of `all` together, of which `seen` is seen, chunk by chunk; each works on its own.
template <class T>
DEVICE void walk_together(const AttentionArgs& args, const Work& work, const Warp& warp, const Range& seen, const Range& all) {
    u32 queries[2][MOST_PARTS * STEPS_OF_PART][4];
    load_queries<T>(args, work, warp, queries);
    Total total = no_total();
    for (u32 ahead = 0; ahead < STAGES - 1; ahead++) {
        if (all.first + ahead < all.end) send_for<T>(args, work, seen, all.first + ahead);
        copy_async_commit();
    }
    for (Range tiles = first_chunk(all); tiles.first < tiles.end; tiles = next_chunk(all, tiles)) {
        Sums<MOST_COLUMNS> chunk;
        clear(chunk);
        for (u32 tile = tiles.first; tile < tiles.end; tile++) {
            copy_async_wait<STAGES - 2>();
            block_sync();  // the tile is there for all, and the one before is read by all
            if (tile + STAGES - 1 < all.end) send_for<T>(args, work, seen, tile + STAGES - 1);
            copy_async_commit();
            if (agreed(holds(warp.tiles, tile))) work_on_tile<T>(args, work, warp, tile, queries, chunk);
        }
        fold<T>(args, work, warp, tiles, total, chunk);
    }
    store_total(args, work, warp, total);
}

// Semantics: as attention of T, to the bit, for heads of at most PREFILL_HEAD_DIM numbers.
//
// Grid: x at least items * KV heads, y at least the pairs of a KV head in an item by PREFILL_PAIRS, z = `splits`. Blocks of 256 threads exactly;
// PREFILL_NUMBER_SHARED * head_dim shared bytes.
template <class T>
DEVICE void attention_prefill(const AttentionArgs& args) {
    const Work work = work_of(args);
    const u32 first = block_index_y() * WARPS * PAIRS;
    const Range seen = seen_by(args, work, first, first + WARPS * PAIRS - 1);
    const Warp of_warp = warp_of(args, work, first + agreed(warp()) * PAIRS, 0);
    walk_together<T>(args, work, of_warp, seen, tiles_of_block(args, work, first, WARPS));
}

KERNEL(attention_prefill_bf16, 256, AttentionArgs) { attention_prefill<Bf16>(args); }
KERNEL(attention_prefill_f16, 256, AttentionArgs) { attention_prefill<F16>(args); }
