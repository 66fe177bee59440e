// y += scaling * B v on tensor cores: v of a group's rows in shared memory, and beside it a ring of B of which every thread reads what
// it copied itself.
#pragma once
#include "lora.cuh"

// 32-rank steps of B on their way to a thread.
constexpr u32 EXPAND_DEPTH = 4;
constexpr u32 RANKS_OF_STEP = 32;
constexpr u32 PIECES_OF_RANKS = 4;
// Most eights of rows at a time. More reuse of B is worth little: y has more bytes.
constexpr u32 EXPAND_EIGHTS = 4;
// Shared memory: the ring, the ids of rows, v.
constexpr u32 EXPAND_RING = EXPAND_DEPTH * 2 * LORA_THREADS * 16;
constexpr u32 EXPAND_V = EXPAND_RING + EXPAND_EIGHTS * TILE_ROWS * 4;

// Some rows of a group: their ids and their v, rounded, as [step][row of `eights` eights][32 ranks]. Where v of not even one eight of
// rows fits, it is read from its planes each time.
struct Shrunk {
    u32* ids;
    u32* v;
    u32 count;
    u32 eights;
    bool fits;
};

// Two neighbouring ranks of a row, planes of v added in ascending order and rounded; zero behind the last rank.
template <class E>
DEVICE u32 shrunk_couple(const LowRankArgs& args, const Pair& pair, u32 row, u32 rank) {
    const f32* v = args.v + static_cast<u64>(row) * args.v_stride + pair.first_rank + rank;
    f32 low = 0.0f, high = 0.0f;
#pragma unroll 1
    for (u32 plane = 0; plane < args.planes; plane++, v += static_cast<u64>(args.v_rows) * args.v_stride) {
        if (rank < pair.rank) low += v[0];
        if (rank + 1 < pair.rank) high += v[1];
    }
    return E::pack(low, high);
}

// Keeps the ids of the rows, and their v where it fits.
template <class E>
DEVICE void keep_shrunk(const Shrunk& shrunk, const LowRankArgs& args, const RowList& rows, const Pair& pair) {
    constexpr u32 COUPLES = RANKS_OF_STEP / 2;
    const u32 steps = ceil_div(pair.rank, RANKS_OF_STEP), couples = shrunk.fits ? rows.count * steps * COUPLES : 0;
    if (thread_index() < rows.count) shrunk.ids[thread_index()] = row_of(rows, thread_index());
#pragma unroll 1
    for (u32 i = thread_index(); i < couples; i += LORA_THREADS) {
        const u32 couple = i % (steps * COUPLES), row = i / (steps * COUPLES), step = couple / COUPLES;
        shrunk.v[(step * shrunk.eights * TILE_ROWS + row) * COUPLES + couple % COUPLES] = shrunk_couple<E>(args, pair, row_of(rows, row), couple * 2);
    }
}

// This lane's piece of v at a step: row lane / 4 of an eight.
template <class E, bool FITS>
DEVICE Piece piece_of_v(const Shrunk& shrunk, const LowRankArgs& args, const Pair& pair, u32 eight, u32 step) {
    if (FITS) return reinterpret_cast<const Piece*>(shrunk.v)[(step * shrunk.eights + eight) * TILE_ROWS * PIECES_OF_RANKS + lane()];
    const u32 row = shrunk.ids[least(eight * TILE_ROWS + lane() / 4, shrunk.count - 1)];
    Piece piece;
#pragma unroll
    for (u32 word = 0; word < 4; word++) piece.word[word] = shrunk_couple<E>(args, pair, row, step * RANKS_OF_STEP + lane() % 4 * 8 + word * 2);
    return piece;
}

// d += both halves of 32 ranks: words 0 and 1 of the pieces, then words 2 and 3.
template <class E>
DEVICE void multiply_ranks(f32 (&d)[4], const Piece& low, const Piece& high, const Piece& v) {
    const u32 a[4] = {low.word[0], high.word[0], low.word[1], high.word[1]};
    const u32 b[2] = {v.word[0], v.word[1]};
    E::mma(d, a, b);
    const u32 a_next[4] = {low.word[2], high.word[2], low.word[3], high.word[3]};
    const u32 b_next[2] = {v.word[2], v.word[3]};
    E::mma(d, a_next, b_next);
}

// A warp's tiles of 16 columns, every eighth of those from `from` to `to`, columns counted from the pair's first, and the piece of B
// to ask for next.
struct ColumnTiles {
    const Piece* b;
    u32 stride;
    u32 pieces;
    u32 steps;
    u32 to;
    u32 column;
    u32 step;
};

DEVICE ColumnTiles column_tiles(const Pair& pair, u32 from, u32 to, u32 piece) {
    return ColumnTiles{static_cast<const Piece*>(pair.b), pair.b_stride / piece, ceil_div(pair.rank, piece), ceil_div(pair.rank, RANKS_OF_STEP),
                       to, from + warp() * TILE_OUTS, 0};
}

// Asks for the next pieces of this lane, two columns of one step.
DEVICE void ask_for_next(ColumnTiles& tiles, Piece* place) {
    const u32 piece = tiles.step * PIECES_OF_RANKS + lane() % 4;
    if (tiles.column < tiles.to) {
        const bool valid = piece < tiles.pieces;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 column = least(tiles.column + half * 8 + lane() / 4, tiles.to - 1);
            const Piece* from = tiles.b + static_cast<u64>(column) * tiles.stride + (valid ? piece : 0);
            copy_async_16(place + half * LORA_THREADS, from, valid);
        }
    }
    copy_async_commit();
    if (++tiles.step == tiles.steps) {
        tiles.step = 0;
        tiles.column += SLICES * TILE_OUTS;
    }
}

// The rows of y that a lane adds to, two of every eight, from the first column of its tiles on.
template <u32 EIGHTS>
struct Corner {
    f32* y;
    u32 cols;
    u32 row[EIGHTS][2];
    u32 valid;
};

template <u32 EIGHTS>
DEVICE Corner<EIGHTS> corner_of(const Shrunk& shrunk, const Rows& y, u32 column) {
    Corner<EIGHTS> corner;
    corner.y = y.values + column + lane() / 4;
    corner.cols = y.cols;
    corner.valid = 0;
#pragma unroll
    for (u32 i = 0; i < EIGHTS * 2; i++) {
        const u32 index = i / 2 * TILE_ROWS + lane() % 4 * 2 + i % 2;
        corner.row[i / 2][i % 2] = shrunk.ids[least(index, shrunk.count - 1)];
        corner.valid |= (index < shrunk.count ? 1u : 0u) << i;
    }
    return corner;
}

// Number i of an eight is in row i % 2 and column i / 2 * 8 of the lane's corner of a tile.
template <u32 EIGHTS>
DEVICE bool in_corner(const Corner<EIGHTS>& corner, u32 eight, u32 i, u32 left) {
    return (corner.valid >> (eight * 2 + i % 2) & 1) != 0 && lane() / 4 + i / 2 * 8 < left;
}

template <u32 EIGHTS>
DEVICE f32& at_corner(const Corner<EIGHTS>& corner, u32 eight, u32 i, u32 column) {
    return corner.y[static_cast<u64>(corner.row[eight][i % 2]) * corner.cols + column + i / 2 * 8];
}

// y under a tile of which `left` columns are there, read well before it is added to.
template <u32 EIGHTS>
DEVICE void read_y(f32 (&held)[EIGHTS][4], const Corner<EIGHTS>& corner, u32 column, u32 left) {
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            held[eight][i] = in_corner(corner, eight, i, left) ? at_corner(corner, eight, i, column) : 0.0f;
        }
    }
}

template <u32 EIGHTS>
DEVICE void add_to_y(const f32 (&held)[EIGHTS][4], const f32 (&sums)[EIGHTS][4], f32 scaling, const Corner<EIGHTS>& corner, u32 column, u32 left) {
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const f32 sum = held[eight][i] + scaling * sums[eight][i];
            if (in_corner(corner, eight, i, left)) at_corner(corner, eight, i, column) = sum;
        }
    }
}

// y[:, from..to] += scaling * B v for the rows of `shrunk`, columns counted from the pair's first; the sums of a tile are one
// accumulator over ascending ranks. A warp takes several tiles at a time: the way to y and back is long, and so is taken once for all of them.
template <class E, u32 EIGHTS, bool FITS>
DEVICE void expand_columns(const LowRankArgs& args, const Pair& pair, const RowList& rows, const Shrunk& shrunk, u32 from, u32 to) {
    constexpr u32 TILES = EIGHTS == 1 && FITS ? 4 : 1;
    ColumnTiles asked = column_tiles(pair, from, to, E::PIECE);
    Piece* ring = reinterpret_cast<Piece*>(shared_bytes()) + thread_index();
#pragma unroll 1
    for (u32 place = 0; place < EXPAND_DEPTH; place++) ask_for_next(asked, ring + place * 2 * LORA_THREADS);
    keep_shrunk<E>(shrunk, args, rows, pair);
    block_sync();
    const Corner<EIGHTS> corner = corner_of<EIGHTS>(shrunk, args.y, pair.column);
    const f32 scaling = pair.scaling;
    Piece* place = ring;
#pragma unroll 1
    for (u32 column = from + warp() * TILE_OUTS; column < to; column += TILES * SLICES * TILE_OUTS) {
        f32 held[TILES][EIGHTS][4];
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
            const u32 own = column + tile * SLICES * TILE_OUTS;
            read_y(held[tile], corner, own, own < to ? to - own : 0);
        }
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
            const u32 own = column + tile * SLICES * TILE_OUTS;
            if (own >= to) continue;
            f32 sums[EIGHTS][4] = {};
#pragma unroll 1
            for (u32 step = 0; step < asked.steps; step++) {
                copy_async_wait<static_cast<int>(EXPAND_DEPTH) - 1>();
                const Piece low = place[0], high = place[LORA_THREADS];
#pragma unroll
                for (u32 eight = 0; eight < EIGHTS; eight++) {
                    if (EIGHTS == 1 || eight < shrunk.eights) {
                        multiply_ranks<E>(sums[eight], low, high, piece_of_v<E, FITS>(shrunk, args, pair, eight, step));
                    }
                }
                ask_for_next(asked, place);
                place = place == ring + (EXPAND_DEPTH - 1) * 2 * LORA_THREADS ? ring : place + 2 * LORA_THREADS;
            }
            add_to_y(held[tile], sums, scaling, corner, afresh(own), to - own);
        }
    }
    copy_async_wait<0>();
}

// All pairs of a group that have columns between `from` and `to`, in their order, as many rows at a time as fit.
template <class E>
DEVICE void expand_group(const LowRankArgs& args, const Group& group, u32 from, u32 to) {
    const Pairs pairs = pairs_of(args.deltas, static_cast<i32>(group.slot));
#pragma unroll 1
    for (u32 i = 0; i < pairs.count; i++) {
        const Pair& pair = pairs.first[i];
        const u32 first = from > pair.column ? from : pair.column, end = least(to, pair.column + pair.columns);
        if (first >= end || pair.rank == 0) continue;
        const u32 bytes_of_eight = ceil_div(pair.rank, RANKS_OF_STEP) * TILE_ROWS * RANKS_OF_STEP * 2;
        const u32 fitting = least(EXPAND_EIGHTS, (args.shared - EXPAND_V) / bytes_of_eight), most = fitting > 0 ? fitting * TILE_ROWS : TILE_ROWS;
#pragma unroll 1
        for (u32 done = 0; done < group.len; done += most) {
            const RowList rows{args.rows->order, group.first + done, least(most, group.len - done)};
            u32* ids = reinterpret_cast<u32*>(shared_bytes() + EXPAND_RING);
            const Shrunk shrunk{ids, ids + EXPAND_EIGHTS * TILE_ROWS, rows.count, ceil_div(rows.count, TILE_ROWS), fitting > 0};
            block_sync();  // what was kept for other rows has been read, what was added to y is there
            const u32 from_column = first - pair.column, to_column = end - pair.column;
            // More than one eight is taken only where it fits.
            if (!shrunk.fits) expand_columns<E, 1, false>(args, pair, rows, shrunk, from_column, to_column);
            else if (shrunk.eights == 1) expand_columns<E, 1, true>(args, pair, rows, shrunk, from_column, to_column);
            else expand_columns<E, EXPAND_EIGHTS, true>(args, pair, rows, shrunk, from_column, to_column);
        }
    }
}
