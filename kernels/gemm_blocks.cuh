// A block's part of the base's GEMM: what its kernels are made of, whoever launches them.
#pragma once
#include "gemm_rows.cuh"
#include "gemm_tiles.cuh"

DEVICE constexpr GemmBlock block_of(u32 rows) {
    return rows == GEMM_ROWS8.rows ? GEMM_ROWS8 : rows == GEMM_ROWS16.rows ? GEMM_ROWS16 : rows == GEMM_ROWS32.rows ? GEMM_ROWS32 : GEMM_ROWS64;
}

template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
DEVICE void gemm_of_rows(const GemmArgs& args, const RowList& rows, u32 out) {
    static_assert(same(block_of(EIGHTS * TILE_ROWS), RowsBlock<TILES, EIGHTS, DEPTH, WIDTH>::BLOCK), "blocks are as abi.cuh says");
    const u32 stride = args.w.stride / E::PIECE;
    const Piece* first = static_cast<const Piece*>(args.w.values) + static_cast<u64>(out) * stride;
    const Weight w{first, stride, least(TILES * TILE_OUTS, args.w.rows - out), args.column + out};
    multiply_rows<E, TILES, EIGHTS, DEPTH, WIDTH>(w, inputs_of<E>(args.x), rows, args.y.values, args.y.cols);
}

// Block `outs` of the outputs and `rows_of` of the rows.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
DEVICE void gemm_rows(const GemmArgs& args, u32 outs, u32 rows_of) {
    constexpr u32 ROWS = EIGHTS * TILE_ROWS;
    const u32 first = rows_of * ROWS, count = args.rows->count;
    if (first >= count) return;
    const RowList rows{nullptr, first, least(ROWS, count - first)};
    gemm_of_rows<E, TILES, EIGHTS, DEPTH, WIDTH>(args, rows, outs * TILES * TILE_OUTS);
}

// Blocks for up to 8, 16, 32 and 64 rows: tiles of outputs, eights of rows, steps on their way, pieces of a step.
template <class E>
DEVICE void gemm_rows8(const GemmArgs& args, u32 outs, u32 rows_of) { gemm_rows<E, 1, 1, 2, 8>(args, outs, rows_of); }
template <class E>
DEVICE void gemm_rows16(const GemmArgs& args, u32 outs, u32 rows_of) { gemm_rows<E, 2, 2, 2, 8>(args, outs, rows_of); }
template <class E>
DEVICE void gemm_rows32(const GemmArgs& args, u32 outs, u32 rows_of) { gemm_rows<E, 1, 4, 2, 8>(args, outs, rows_of); }
template <class E>
DEVICE void gemm_rows64(const GemmArgs& args, u32 outs, u32 rows_of) { gemm_rows<E, 2, 8, 2, 8>(args, outs, rows_of); }
