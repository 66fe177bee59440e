// v = A x: by blocks of a launch of their own, or by some of a launch that multiplies the base's weight with the same x.
#pragma once
#include "lora.cuh"

constexpr u32 SHRINK_RING = 65536;

static_assert(SHRINK_RANKS == TILE_OUTS, "the ranks of an item");
static_assert(SHRINK_SHARED == in_pieces(SHRINK_RING + sizeof(Work)), "the ring, then the work");

// An item of shrink is 16 ranks of a pair, some rows of a group and a plane. These are the rows: long groups read A less often.
DEVICE u32 rows_of_item(u32 len) { return len <= TILE_ROWS ? TILE_ROWS : len <= 2 * TILE_ROWS ? 2 * TILE_ROWS : 4 * TILE_ROWS; }

template <class E, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
DEVICE void shrink_tile(const LowRankArgs& args, const Group& group, const Pair& pair, u32 item) {
    static_assert(RowsBlock<1, EIGHTS, DEPTH, WIDTH>::BLOCK.shared <= SHRINK_RING, "the work lies behind the ring");
    constexpr u32 ROWS = EIGHTS * TILE_ROWS;
    const u32 planes = args.planes, parts = ceil_div(group.len, ROWS);
    const u32 plane = item % planes, part = item / planes % parts, rank = item / planes / parts * TILE_OUTS;
    const u32 skipped = plane * (PLANE_INPUTS / E::PIECE), stride = pair.a_stride / E::PIECE;
    const Inputs x{static_cast<const Piece*>(args.x.input) + skipped, args.x.input_stride / E::PIECE,
                   least(PLANE_INPUTS / E::PIECE, ceil_div(args.x.cols, E::PIECE) - skipped)};
    const Weight a{static_cast<const Piece*>(pair.a) + static_cast<u64>(rank) * stride + skipped, stride,
                   least(TILE_OUTS, pair.rank - rank), pair.first_rank + rank};
    const RowList rows{args.rows->order, group.first + part * ROWS, least(ROWS, group.len - part * ROWS)};
    f32* v = args.v + static_cast<u64>(plane) * args.v_rows * args.v_stride;
    multiply_rows<E, 1, EIGHTS, DEPTH, WIDTH>(a, x, rows, v, args.v_stride);
}

// The blocks of `share` make all products of A of groups of up to ROWS rows.
template <class E, u32 ROWS>
DEVICE void shrink(const LowRankArgs& args, const Share& share) {
    Work& work = *reinterpret_cast<Work*>(shared_bytes() + SHRINK_RING);
    const auto items = [&](u32 len, const Pair& pair) {
        return ceil_div(pair.rank, TILE_OUTS) * ceil_div(len, rows_of_item(len)) * args.planes;
    };
    const auto run = [&](const Group& group, const Pair& pair, u32 item) {
        if (group.len <= TILE_ROWS) {
            shrink_tile<E, 1, 2, 8>(args, group, pair, item);
        } else if (group.len <= 2 * TILE_ROWS) {
            if constexpr (ROWS > TILE_ROWS) shrink_tile<E, 2, 2, 8>(args, group, pair, item);
        } else {
            if constexpr (ROWS > 2 * TILE_ROWS) shrink_tile<E, 4, 2, 4>(args, group, pair, item);
        }
    };
    share_work(work, share, *args.rows, args.deltas, items, run);
}
