// Low-rank deltas, true ranks, all adapters of a step at once. Semantics of both kernels together, for each row r of a slot with
// entries: `y[r, c0..c1] += scaling * B(A x[r])` for each entry `{a: [rank, in], b: [c1 - c0, rank], scaling, columns: c0..c1}`.
// Rows without are not touched.
#include "expand.cuh"
#include "gemm_f32.cuh"
#include "rows.cuh"
#include "shrink.cuh"

static_assert(SHRINK_SHARED_F32 == in_pieces(F32_SHARED + sizeof(Work)), "a stage, then the work");
static_assert(EXPAND_SHARED_F32 == F32_SHARED, "a stage");
static_assert(EXPAND_SHARED >= EXPAND_V + EXPAND_EIGHTS * TILE_ROWS * 128 * 2, "v of as many rows as are taken at once, up to rank 128");

// Semantics: `v[plane, r, first_rank + j] = Σ_k x[r, k] * a[j, k]` over the PLANE_INPUTS inputs of the plane, for each row of a group and
// each pair of its slot. Inputs are rounded as for gemm, and a plane is summed as gemm sums a matrix of its width.
// v [planes][v_rows][v_stride]. Blocks of 256 threads, any number of them along x; SHRINK_SHARED bytes of shared memory.
KERNEL_RESIDENT(shrink_bf16, 256, 2, LowRankArgs) { shrink<Bf16, ROWS_OF_GROUP>(args, {block_index_x(), grid_x()}); }
KERNEL_RESIDENT(shrink_f16, 256, 2, LowRankArgs) { shrink<F16, ROWS_OF_GROUP>(args, {block_index_x(), grid_x()}); }

// Semantics: as above in f32, ascending inputs, nothing is narrowed. Blocks of 256 threads, any number; SHRINK_SHARED_F32.
KERNEL_RESIDENT(shrink_f32, 256, 2, LowRankArgs) {
    Work& work = *reinterpret_cast<Work*>(shared_bytes() + F32_SHARED);
    const u32 planes = args.planes;
    const auto items = [&](u32, const Pair& pair) { return ceil_div(pair.rank, F32_OUTS) * planes; };
    const auto run = [&](const Group& group, const Pair& pair, u32 item) {
        const u32 plane = item % planes, rank = item / planes * F32_OUTS, skipped = plane * PLANE_INPUTS;
        const RowList rows{args.rows->order, group.first, group.len};
        const WeightF32 a{static_cast<const f32*>(pair.a) + static_cast<u64>(rank) * pair.a_stride + skipped, pair.a_stride,
                          least(F32_OUTS, pair.rank - rank)};
        const auto read = [&](u32 row, u32 k) { return args.x.values[static_cast<u64>(row_of(rows, row)) * args.x.cols + skipped + k]; };
        const auto write = [&](u32 row, u32 j, f32 sum) {
            args.v[(static_cast<u64>(plane) * args.v_rows + row_of(rows, row)) * args.v_stride + pair.first_rank + rank + j] = sum;
        };
        multiply_f32(a, rows.count, least(PLANE_INPUTS, args.x.cols - skipped), read, write);
    };
    share_work(work, {block_index_x(), grid_x()}, *args.rows, args.deltas, items, run);
}

// What a bottleneck has between shrink and expand. Semantics, for each row of a slot with one: `v[0, r, j] = f(Σ_planes v[plane, r, j] +
// down_bias[j])` for each rank j of its pair, planes in ascending order. Expand then reads one plane.
// Blocks of 256 threads, any number of them along x, a row at a time; no shared memory.
KERNEL(bend_shrunk, 256, LowRankArgs) {
    const u64 plane = static_cast<u64>(args.v_rows) * args.v_stride;
    for (u32 row = block_index_x(); row < args.rows->count; row += grid_x()) {
        const i32 slot = args.rows->slots[row];
        const Bottleneck* entry = bottleneck_of(args.deltas, slot);
        if (!entry) continue;
        const u32 rank = pairs_of(args.deltas, slot).first->rank;
        f32* v = args.v + static_cast<u64>(row) * args.v_stride;
        for (u32 j = thread_index(); j < rank; j += block_threads()) {
            f32 sum = 0.0f;
            for (u32 i = 0; i < args.planes; i++) sum += v[i * plane + j];
            v[j] = bend(entry->non_linearity, entry->slope, sum + entry->down_bias[j]);
        }
    }
}

// Runs of EXPAND_COLUMNS columns of groups, an equal and consecutive share for every block: `run(group, from, to)`.
template <class Run>
DEVICE void share_columns(const LowRankArgs& args, const Run& run) {
    const RowSet& set = *args.rows;
    const u32 parts = ceil_div(args.y.cols, EXPAND_COLUMNS);
    const u32 all = set.groups * parts, share = all / grid_x(), rest = all % grid_x();
    u32 part = block_index_x() * share + least(block_index_x(), rest);
    const u32 end = part + share + (block_index_x() < rest ? 1 : 0);
    while (part < end) {
        const u32 group = part / parts, first = part % parts;
        const u32 run_of = least(end - part, parts - first);
        run(set.group[group], first * EXPAND_COLUMNS, least((first + run_of) * EXPAND_COLUMNS, args.y.cols));
        part += run_of;
    }
}

// Semantics: `y[r, c0..c1] += scaling * (b v[r])` for each row of a group and each pair of its slot, in their order: planes of v are
// added in ascending order and rounded, a sum is one accumulator over ascending ranks, the scaling is applied to it in f32.
// Blocks of 256 threads, any number of them along x; shared bytes are in `args.shared`: EXPAND_SHARED, or more for ranks above 512.
template <class E>
DEVICE void expand(const LowRankArgs& args) {
    share_columns(args, [&](const Group& group, u32 from, u32 to) { expand_group<E>(args, group, from, to); });
}

KERNEL_RESIDENT(expand_bf16, 256, 2, LowRankArgs) { expand<Bf16>(args); }
KERNEL_RESIDENT(expand_f16, 256, 2, LowRankArgs) { expand<F16>(args); }

// One pair of a group in f32, 64 columns at a time.
DEVICE void expand_pair_f32(const LowRankArgs& args, const Group& group, const Pair& pair, u32 from, u32 to) {
    const RowList rows{args.rows->order, group.first, group.len};
    const u32 planes = args.planes;
    const auto read = [&](u32 row, u32 rank) {
        const f32* v = args.v + static_cast<u64>(row_of(rows, row)) * args.v_stride + pair.first_rank + rank;
        f32 sum = 0.0f;
        for (u32 plane = 0; plane < planes; plane++) sum += v[static_cast<u64>(plane) * args.v_rows * args.v_stride];
        return sum;
    };
    for (u32 column = from; column < to; column += F32_OUTS) {
        const WeightF32 b{static_cast<const f32*>(pair.b) + static_cast<u64>(column - pair.column) * pair.b_stride, pair.b_stride,
                          least(F32_OUTS, to - column)};
        const auto write = [&](u32 row, u32 c, f32 sum) {
            f32* y = args.y.values + static_cast<u64>(row_of(rows, row)) * args.y.cols + column + c;
            *y = *y + pair.scaling * sum;
        };
        multiply_f32(b, rows.count, pair.rank, read, write);
    }
}

// Semantics: as above in f32. Blocks of 256 threads, any number; EXPAND_SHARED_F32.
KERNEL_RESIDENT(expand_f32, 256, 2, LowRankArgs) {
    share_columns(args, [&](const Group& group, u32 from, u32 to) {
        const Pairs pairs = pairs_of(args.deltas, static_cast<i32>(group.slot));
        for (u32 i = 0; i < pairs.count; i++) {
            const Pair pair = pairs.first[i];
            const u32 first = from > pair.column ? from : pair.column, end = least(to, pair.column + pair.columns);
            if (first < end) expand_pair_f32(args, group, pair, first, end);
            block_sync();  // the next pair may add to the same columns
        }
    });
}
