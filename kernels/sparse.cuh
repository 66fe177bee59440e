// y += S x, S sparse: a warp for each output of a group of rows, so that S is read in runs and once for several of them.
#pragma once
#include "rows.cuh"

// Rows that one walk over a row of S serves.
constexpr u32 SPARSE_ROWS = 8;

// A number of x as products read it.
template <class T>
DEVICE f32 input_of(const Rows& x, u32 row, u32 column) {
    if constexpr (T::PIECE == 4) return x.values[static_cast<u64>(row) * x.cols + column];
    else return T::widen(static_cast<const typename T::Bits*>(x.input)[static_cast<u64>(row) * x.input_stride + column]);
}

// Adds one output of S to `count` rows, at least one and up to SPARSE_ROWS of them. All lanes of the warp take part.
template <class T>
DEVICE void add_output(const SparseArgs& args, const Sparse& matrix, u32 output, const u32* order, u32 count) {
    const u32 begin = matrix.starts[output], end = matrix.starts[output + 1];
    if (begin == end) return;
    u32 rows[SPARSE_ROWS];
    f32 sums[SPARSE_ROWS];
#pragma unroll
    for (u32 i = 0; i < SPARSE_ROWS; i++) {
        rows[i] = order[i < count ? i : 0];
        sums[i] = 0.0f;
    }
    for (u32 at = begin + lane(); at < end; at += 32) {
        const u32 input = matrix.inputs[at];
        const f32 value = T::widen(static_cast<const typename T::Bits*>(matrix.values)[at]);
#pragma unroll
        for (u32 i = 0; i < SPARSE_ROWS; i++) {
            if (i < count) sums[i] = fused(value, input_of<T>(args.x, rows[i], input), sums[i]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < SPARSE_ROWS; i++) {
        if (i >= count) break;
        const f32 sum = warp_sum(sums[i]);
        if (lane() == 0) row_of(args.y, rows[i])[matrix.column + output] += sum;
    }
}

template <class T>
DEVICE void sparse(const SparseArgs& args) {
    const RowSet& set = *args.rows;
    const u32 warps = block_threads() / 32, columns = args.y.cols, items = set.groups * columns;
    for (u32 item = block_index_x() * warps + warp(); item < items; item += grid_x() * warps) {
        const Group group = set.group[item / columns];
        const SparseMatrices matrices = sparse_of(args.deltas, static_cast<i32>(group.slot));
        for (u32 entry = 0; entry < matrices.count; entry++) {
            const Sparse matrix = matrices.first[entry];
            const u32 output = item % columns - matrix.column;  // wraps below the first column, and is too large then
            if (output >= matrix.columns) continue;
            for (u32 first = 0; first < group.len; first += SPARSE_ROWS) {
                const u32 left = group.len - first;
                add_output<T>(args, matrix, output, set.order + group.first + first, left < SPARSE_ROWS ? left : SPARSE_ROWS);
            }
        }
    }
}
