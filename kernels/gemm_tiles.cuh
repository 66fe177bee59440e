// A product of a weight with many rows, in tiles through shared memory; the bits of gemm_rows.cuh.
#pragma once
#include "gemm_rows.cuh"

constexpr u32 TILES_OUTS = 128;
constexpr u32 TILES_THREADS = 256;
// Stages on their way or in use, a line of each row.
constexpr u32 TILES_STAGES = 3;
// Eights of rows of a warp.
constexpr u32 TILES_EIGHTS = 4;

// Pieces of one stage: weights, then inputs.
DEVICE constexpr u32 pieces_of_stage(u32 rows) { return (TILES_OUTS + rows) * PIECES_OF_LINE; }

// Rows of a matrix that this thread copies, 32 rows apart: where its piece is in each, and where it goes.
template <u32 PARTS>
struct Copies {
    const Piece* from;
    u32 at[PARTS];
    u32 valid;
    u32 to;
};

// Row `row` begins `place(row)` pieces behind `first`.
template <u32 PARTS, class Place>
DEVICE Copies<PARTS> copies_by(const Piece* first, u32 rows, const Place& place) {
    const u32 piece = thread_index() % PIECES_OF_LINE, row = thread_index() / PIECES_OF_LINE;
    Copies<PARTS> copies;
    copies.from = first + piece;
    copies.valid = 0;
    copies.to = piece_at<PIECES_OF_LINE>(row, piece);
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
        copies.at[part] = place(least(row + part * 32, rows - 1));
        copies.valid |= (row + part * 32 < rows ? 1u : 0u) << part;
    }
    return copies;
}

template <u32 PARTS>
DEVICE Copies<PARTS> copies_of(const Piece* first, u32 stride, u32 rows) {
    return copies_by<PARTS>(first, rows, [&](u32 row) { return row * stride; });
}

template <u32 PARTS>
DEVICE void copy_rows_of_stage(const Copies<PARTS>& copies, Piece* stage, u32 first, u32 pieces) {
    const bool inside = first + thread_index() % PIECES_OF_LINE < pieces;
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
        const bool valid = inside && (copies.valid >> part & 1) != 0;
        const Piece* from = copies.from + copies.at[part] + first;
        copy_async_16(stage + copies.to + part * 32 * PIECES_OF_LINE, inside ? from : copies.from, valid);
    }
}

// Adds a slice to the total and begins the next.
template <u32 TILES>
DEVICE void end_slice(f32 (&total)[TILES][TILES_EIGHTS][4], f32 (&sums)[TILES][TILES_EIGHTS][4]) {
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (u32 eight = 0; eight < TILES_EIGHTS; eight++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                total[tile][eight][i] += sums[tile][eight][i];
                sums[tile][eight][i] = 0.0f;
            }
        }
    }
}

// The tile of ROWS rows and TILES_OUTS outputs: warps side by side along outputs, then along rows, 32 rows each.
template <class E, u32 ROWS>
struct TileSums {
    static constexpr u32 ROW_WARPS = ROWS / (TILES_EIGHTS * TILE_ROWS);
    static constexpr u32 OUT_WARPS = TILES_THREADS / WARP / ROW_WARPS;
    static constexpr u32 TILES = TILES_OUTS / OUT_WARPS / TILE_OUTS;
    f32 total[TILES][TILES_EIGHTS][4];

    static_assert(ROWS % 32 == 0 && ROW_WARPS * OUT_WARPS * WARP == TILES_THREADS, "the warps cover the tile");
};

template <class E, u32 ROWS>
DEVICE void sum_tile(TileSums<E, ROWS>& tile, const Copies<TILES_OUTS / 32>& w, const Copies<ROWS / 32>& x, u32 pieces) {
    typedef TileSums<E, ROWS> Sums;
    Piece* shared = reinterpret_cast<Piece*>(shared_bytes());
    const u32 w_at = warp() % Sums::OUT_WARPS * Sums::TILES * TILE_OUTS * PIECES_OF_LINE;
    const u32 x_at = (TILES_OUTS + warp() / Sums::OUT_WARPS * TILES_EIGHTS * TILE_ROWS) * PIECES_OF_LINE;
    const u32 steps = ceil_div(pieces, PIECES_OF_LINE), of_slice = lines_of_slice(pieces);
    const auto send = [&](u32 step) {
        Piece* place = shared + step % TILES_STAGES * pieces_of_stage(ROWS);
        if (step < steps) {
            copy_rows_of_stage(w, place, step * PIECES_OF_LINE, pieces);
            copy_rows_of_stage(x, place + TILES_OUTS * PIECES_OF_LINE, step * PIECES_OF_LINE, pieces);
        }
        copy_async_commit();
    };
    f32 sums[Sums::TILES][TILES_EIGHTS][4] = {};
    u32 border = of_slice;
    for (u32 step = 0; step < TILES_STAGES - 1; step++) send(step);
    for (u32 step = 0; step < steps; step++) {
        copy_async_wait<TILES_STAGES - 2>();
        block_sync();
        send(step + TILES_STAGES - 1);
        const Piece* place = shared + step % TILES_STAGES * pieces_of_stage(ROWS);
        multiply_step<E, PIECES_OF_LINE>(sums, place + w_at, place + x_at);
        if (step + 1 == border) {
            end_slice(tile.total, sums);
            border += of_slice;
        }
    }
    copy_async_wait<0>();
    end_slice(tile.total, sums);
}

template <class E, u32 ROWS>
DEVICE void store_tiles(const TileSums<E, ROWS>& tile, const GemmArgs& args, u32 first, u32 rows, u32 out) {
    typedef TileSums<E, ROWS> Sums;
    const u32 g = lane() / 4, t = lane() % 4;
    const u32 row = warp() / Sums::OUT_WARPS * TILES_EIGHTS * TILE_ROWS + 2 * t;
    const u32 column = out + warp() % Sums::OUT_WARPS * Sums::TILES * TILE_OUTS + g;
#pragma unroll
    for (u32 part = 0; part < Sums::TILES * 2; part++) {
        const u32 c = column + part * 8;
        if (c >= args.w.rows) continue;
#pragma unroll
        for (u32 i = 0; i < TILES_EIGHTS * 2; i++) {
            const u32 r = row + i / 2 * TILE_ROWS + i % 2;
            f32* y = args.y.values + static_cast<u64>(first + r) * args.y.cols + args.column + c;
            if (r < rows) *y = tile.total[part / 2][i / 2][part % 2 * 2 + i % 2];
        }
    }
}

// Block `rows_of` of the rows and `outs` of the outputs.
template <class E, u32 ROWS>
DEVICE void gemm_tiles(const GemmArgs& args, u32 rows_of, u32 outs) {
    static_assert(same(ROWS == GEMM_TILES.rows ? GEMM_TILES : GEMM_TILES64, {ROWS, TILES_OUTS, TILES_STAGES * pieces_of_stage(ROWS) * 16}),
                  "blocks are as abi.cuh says");
    const u32 first = rows_of * ROWS, count = args.rows->count;
    if (first >= count) return;
    const u32 rows = least(ROWS, count - first), out = outs * TILES_OUTS;
    const u32 w_stride = args.w.stride / E::PIECE, x_stride = args.x.input_stride / E::PIECE;
    const Piece* w = static_cast<const Piece*>(args.w.values) + static_cast<u64>(out) * w_stride;
    const Piece* x = static_cast<const Piece*>(args.x.input) + static_cast<u64>(first) * x_stride;
    TileSums<E, ROWS> tile = {};
    sum_tile(tile, copies_of<TILES_OUTS / 32>(w, w_stride, least(TILES_OUTS, args.w.rows - out)), copies_of<ROWS / 32>(x, x_stride, rows),
             ceil_div(args.x.cols, E::PIECE));
    store_tiles(tile, args, first, rows, out);
}
