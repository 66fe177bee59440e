// The base's GEMM. Semantics: `y[r, c] = Σ_k x[r, k] * w[c, k]` for every column c of `w`; no bias, ever.
#include "deltas.cuh"
#include "gemm_f32.cuh"
#include "gemm_blocks.cuh"

// Semantics: as above, for up to 8, 16, 32, 64 rows in one reading of the weight; more rows are further blocks along y.
// x.input [rows, in], w [out, in], y.values [rows, out]. Blocks of 256 threads, and of GEMM_ROWS8, GEMM_ROWS16, GEMM_ROWS32 and
// GEMM_ROWS64: grid (ceil(w.rows / outs), ceil(rows at most / rows)). The last has more shared bytes than every device has.
// Every block reads all of x, which comes from the L2 cache, half as many bytes of it as of weights for 8 and twice as many for 32 and 64 rows;
// blocks of more outputs would read fewer, and be too few for a device with many processors.
KERNEL_RESIDENT(gemm_rows8_bf16, 256, 4, GemmArgs) { gemm_rows8<Bf16>(args, block_index_x(), block_index_y()); }
KERNEL_RESIDENT(gemm_rows8_f16, 256, 4, GemmArgs) { gemm_rows8<F16>(args, block_index_x(), block_index_y()); }
KERNEL_RESIDENT(gemm_rows16_bf16, 256, 2, GemmArgs) { gemm_rows16<Bf16>(args, block_index_x(), block_index_y()); }
KERNEL_RESIDENT(gemm_rows16_f16, 256, 2, GemmArgs) { gemm_rows16<F16>(args, block_index_x(), block_index_y()); }
KERNEL_RESIDENT(gemm_rows32_bf16, 256, 2, GemmArgs) { gemm_rows32<Bf16>(args, block_index_x(), block_index_y()); }
KERNEL_RESIDENT(gemm_rows32_f16, 256, 2, GemmArgs) { gemm_rows32<F16>(args, block_index_x(), block_index_y()); }
KERNEL(gemm_rows64_bf16, 256, GemmArgs) { gemm_rows64<Bf16>(args, block_index_x(), block_index_y()); }
KERNEL(gemm_rows64_f16, 256, GemmArgs) { gemm_rows64<F16>(args, block_index_x(), block_index_y()); }

// Semantics: as above, the same bits, for many rows: every tile of 128 outputs and 128 (64) rows reads its weights once.
// Blocks of 256 threads, and of GEMM_TILES and GEMM_TILES64: grid (ceil(rows at most / rows), ceil(w.rows / outs)).
// Blocks of one weight are neighbours, so that it comes from memory once; x fits the L2 cache.
KERNEL(gemm_tiles_bf16, 256, GemmArgs) { gemm_tiles<Bf16, 128>(args, block_index_x(), block_index_y()); }
KERNEL(gemm_tiles_f16, 256, GemmArgs) { gemm_tiles<F16, 128>(args, block_index_x(), block_index_y()); }
KERNEL_RESIDENT(gemm_tiles64_bf16, 256, 2, GemmArgs) { gemm_tiles<Bf16, 64>(args, block_index_x(), block_index_y()); }
KERNEL_RESIDENT(gemm_tiles64_f16, 256, 2, GemmArgs) { gemm_tiles<F16, 64>(args, block_index_x(), block_index_y()); }

DEVICE void gemm_of_rows_f32(const GemmArgs& args, const RowList& rows, u32 out) {
    const WeightF32 w{static_cast<const f32*>(args.w.values) + static_cast<u64>(out) * args.w.stride, args.w.stride,
                      least(F32_OUTS, args.w.rows - out)};
    const auto read = [&](u32 row, u32 k) { return args.x.values[static_cast<u64>(row_of(rows, row)) * args.x.cols + k]; };
    const auto write = [&](u32 row, u32 c, f32 sum) {
        args.y.values[static_cast<u64>(row_of(rows, row)) * args.y.cols + args.column + out + c] = sum;
    };
    multiply_f32(w, rows.count, args.x.cols, read, write);
}

// Semantics: as above in f32: x.values [rows, in], nothing is narrowed.
// Blocks of 256 threads, and of GEMM_F32: grid (ceil(w.rows / outs), ceil(rows at most / rows)).
KERNEL(gemm_f32, 256, GemmArgs) {
    const u32 first = block_index_y() * F32_ROWS, count = args.rows->count;
    if (first >= count) return;
    gemm_of_rows_f32(args, RowList{nullptr, first, least(F32_ROWS, count - first)}, block_index_x() * F32_OUTS);
}

// Calls `run(group, replaced, first)` for this block's share of what groups have in place of the base's rows, `outs` of them at a time.
template <class Run>
DEVICE void share_replaced(const ReplaceColumnsArgs& args, u32 outs, const Run& run) {
    const RowSet& set = *args.rows;
    u32 passed = 0;
    for (u32 index = 0; index < set.groups; index++) {
        const Group group = set.group[index];
        const ReplacedRows* replaced = replaced_of(args.deltas, static_cast<i32>(group.slot));
        const u32 runs = replaced ? ceil_div(replaced->count, outs) : 0;
        for (u32 i = (block_index_x() + grid_x() - passed % grid_x()) % grid_x(); i < runs; i += grid_x()) run(group, *replaced, i * outs);
        passed += runs;
    }
}

DEVICE f32* replaced_column(const Rows& y, const ReplacedRows& replaced, u32 row, u32 index) {
    return y.values + static_cast<u64>(row) * y.cols + replaced.ids[index];
}

constexpr u32 REPLACED_TILES = GEMM_ROWS8.outs / TILE_OUTS;

template <class E, u32 EIGHTS, u32 WIDTH>
DEVICE void replace_run(const ReplaceColumnsArgs& args, const Group& group, const ReplacedRows& replaced, u32 first) {
    static_assert(RowsBlock<REPLACED_TILES, EIGHTS, 2, WIDTH>::BLOCK.shared <= GEMM_ROWS8.shared, "the ring fits");
    constexpr u32 ROWS = EIGHTS * TILE_ROWS;
    const u32 stride = replaced.stride / E::PIECE;
    const Piece* rows_of_run = static_cast<const Piece*>(replaced.rows) + static_cast<u64>(first) * stride;
    const Weight w{rows_of_run, stride, least(GEMM_ROWS8.outs, replaced.count - first), 0};
    const auto write = [&](u32 row, u32 out, f32 sum) { *replaced_column(args.y, replaced, row, first + out) = sum; };
    for (u32 done = 0; done < group.len; done += ROWS) {
        const RowList rows{args.rows->order, group.first + done, least(ROWS, group.len - done)};
        multiply_rows<E, REPLACED_TILES, EIGHTS, 2, WIDTH>(w, inputs_of<E>(args.x), rows, write);
    }
}

// Semantics, for each row r of a slot with an entry: `y[r, ids[i]] = Σ_k x[r, k] * rows[i, k]` for each i; no other number of y is
// touched. The same bits as gemm. x.input [rows, in], rows [count, in]. Blocks of 256 threads, any number of them along x; shared bytes as
// gemm_rows8 and gemm_f32. What an entry has is read once for up to 32 rows of a group.
template <class E>
DEVICE void replace_columns(const ReplaceColumnsArgs& args) {
    share_replaced(args, GEMM_ROWS8.outs, [&](const Group& group, const ReplacedRows& replaced, u32 first) {
        if (group.len <= TILE_ROWS) replace_run<E, 1, 8>(args, group, replaced, first);
        else replace_run<E, 4, 4>(args, group, replaced, first);
    });
}

KERNEL_RESIDENT(replace_columns_bf16, 256, 2, ReplaceColumnsArgs) { replace_columns<Bf16>(args); }
KERNEL_RESIDENT(replace_columns_f16, 256, 2, ReplaceColumnsArgs) { replace_columns<F16>(args); }

KERNEL(replace_columns_f32, 256, ReplaceColumnsArgs) {
    share_replaced(args, F32_OUTS, [&](const Group& group, const ReplacedRows& replaced, u32 first) {
        const RowList rows{args.rows->order, group.first, group.len};
        const WeightF32 w{static_cast<const f32*>(replaced.rows) + static_cast<u64>(first) * replaced.stride, replaced.stride,
                          least(F32_OUTS, replaced.count - first)};
        const auto read = [&](u32 row, u32 k) { return args.x.values[static_cast<u64>(row_of(rows, row)) * args.x.cols + k]; };
        const auto write = [&](u32 row, u32 out, f32 sum) { *replaced_column(args.y, replaced, row_of(rows, row), first + out) = sum; };
        multiply_f32(w, rows.count, args.x.cols, read, write);
    });
}

// Rows of a group that are taken at once: eight, or 32 in blocks of the same shared bytes where the group has more.
constexpr u32 DENSE_ROWS = 32;

template <class E, u32 EIGHTS, u32 WIDTH>
DEVICE void dense_rows(const DenseArgs& args, const DenseMatrix& entry, const RowList& rows, u32 out) {
    static_assert(RowsBlock<1, EIGHTS, 2, WIDTH>::BLOCK.shared <= GEMM_ROWS8.shared, "the blocks of gemm_rows8");
    const u32 stride = entry.stride / E::PIECE;
    const Weight w{static_cast<const Piece*>(entry.d) + static_cast<u64>(out) * stride, stride, least(TILE_OUTS, entry.columns - out),
                   entry.column + out};
    const f32 scaling = entry.scaling;
    const bool replaces = entry.replaces != 0;
    f32* y = args.y.values + w.column;
    const auto write = [&](u32 row, u32 c, f32 sum) {
        f32& number = y[static_cast<u64>(row) * args.y.cols + c];
        number = replaces ? sum : number + scaling * sum;
    };
    multiply_rows<E, 1, EIGHTS, 2, WIDTH>(w, inputs_of<E>(args.x), rows, write);
}

// Calls `visit(entry, rows)` for every matrix of every group of this block.
template <class Visit>
DEVICE void each_dense(const DenseArgs& args, const Visit& visit) {
    const RowSet& set = *args.rows;
    for (u32 index = block_index_y(); index < set.groups; index += grid_y()) {
        const Group group = set.group[index];
        const Matrices matrices = matrices_of(args.deltas, static_cast<i32>(group.slot));
        for (u32 i = 0; i < matrices.count; i++) visit(matrices.first[i], RowList{set.order, group.first, group.len});
    }
}

// Semantics: for each row r of a slot with entries at `deltas`, for each of them: y[r, columns] = d x[r] where it replaces, else
// y[r, columns] += scaling * (d x[r]); d x[r] has the bits of gemm. The other rows and columns of y are not touched.
// Blocks of 256 threads, shared bytes as gemm_rows8 and gemm_f32; grid along x for the outputs of y as those have it, along y as many
// blocks as is convenient, each takes every so many-th group.
template <class E>
DEVICE void dense(const DenseArgs& args) {
    const u32 out = block_index_x() * TILE_OUTS;
    each_dense(args, [&](const DenseMatrix& entry, const RowList& group) {
        if (out >= entry.columns) return;
        for (u32 done = 0; done < group.count; done += DENSE_ROWS) {
            const RowList rows{group.order, group.first + done, least(DENSE_ROWS, group.count - done)};
            if (rows.count <= TILE_ROWS) {
                dense_rows<E, 1, 8>(args, entry, rows, out);
            } else {
                dense_rows<E, DENSE_ROWS / TILE_ROWS, 4>(args, entry, rows, out);
            }
        }
    });
}

KERNEL(dense_bf16, 256, DenseArgs) { dense<Bf16>(args); }
KERNEL(dense_f16, 256, DenseArgs) { dense<F16>(args); }

KERNEL(dense_f32, 256, DenseArgs) {
    const u32 out = block_index_x() * F32_OUTS;
    each_dense(args, [&](const DenseMatrix& entry, const RowList& rows) {
        if (out >= entry.columns) return;
        const WeightF32 w{static_cast<const f32*>(entry.d) + static_cast<u64>(out) * entry.stride, entry.stride, least(F32_OUTS, entry.columns - out)};
        const auto read = [&](u32 row, u32 k) { return args.x.values[static_cast<u64>(row_of(rows, row)) * args.x.cols + k]; };
        const auto write = [&](u32 row, u32 c, f32 sum) {
            f32& y = args.y.values[static_cast<u64>(row_of(rows, row)) * args.y.cols + entry.column + out + c];
            y = entry.replaces != 0 ? sum : y + entry.scaling * sum;
        };
        multiply_f32(w, rows.count, args.x.cols, read, write);
    });
}
