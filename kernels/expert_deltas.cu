// Low-rank deltas of experts: what their adapters add to rows that chose an expert. Semantics of these kernels and of the GEMMs with
// deltas of experts.cu together, for each pair of a row and an expert for which the row's adapter has entries `{a, b, scaling,
// columns: c0..c1}`: `y[c0..c1] += scaling * B(A x)`, x and y being those of gate and up, stacked, or of down. Rows without are not
// touched. Which pairs there are is known on the device alone: what is launched is the same for any.
#include "expert_deltas.cuh"
#include "gemm_f32.cuh"
#include "lora.cuh"

constexpr u32 EXPERTS_RING = 65536;

static_assert(SHRINK_SHARED == in_pieces(EXPERTS_RING + sizeof(Work)), "the ring, then the work");
static_assert(SHRINK_SHARED_F32 == in_pieces(F32_SHARED + sizeof(Work)), "a stage, then the work");

// --- which pairs ------------------------------------------------------------------------------------------------------

// Lists the pairs of a group of rows of one adapter, by expert, within one by row. A row chooses an expert once.
DEVICE void list_pairs(const ExpertDeltasArgs& args, const Group& rows) {
    const ExpertsArgs& of = args.experts;
    const u32* order = of.rows->order + rows.first;
    const u32 each = of.each;
    for (u32 i = thread_index(); i < rows.len * each; i += block_threads()) {
        const u32 choice = order[i / each] * each + i % each, expert = of.chosen[choice];
        u32 lower = 0, earlier = 0, equal = 0;
        for (u32 other = 0; other < rows.len; other++) {
            const u32* chosen = of.chosen + order[other] * each;
            for (u32 j = 0; j < each; j++) {
                lower += chosen[j] < expert ? 1 : 0;
                equal += chosen[j] == expert ? 1 : 0;
                earlier += chosen[j] == expert && other < i / each ? 1 : 0;
            }
        }
        const u32 place = rows.first * each + lower + earlier;
        args.list[place] = of.pairs[choice];
        args.group[place] = ExpertGroup{place, earlier == 0 ? equal : 0, rows.slot, expert};
    }
}

// Semantics: `of_gate_up` and `of_down` of every pair, and `list` and `group` of those of rows that have an adapter.
// Blocks of 256 threads, any grid; no shared memory.
KERNEL(group_expert_deltas, 256, ExpertDeltasArgs) {
    const RowSet& set = *args.experts.rows;
    const u32 choices = set.count * args.experts.each;
    for (u32 choice = block_index_x() * block_threads() + thread_index(); choice < choices; choice += grid_x() * block_threads()) {
        const i32 slot = set.slots[choice / args.experts.each];
        const u32 expert = args.experts.chosen[choice], pair = args.experts.pairs[choice];
        const Pairs gate_up = pairs_of_expert(args.gate_up, slot, expert), down = pairs_of_expert(args.down, slot, expert);
        args.of_gate_up[pair] = ExpertPairs{gate_up.first, gate_up.count, 0};
        args.of_down[pair] = ExpertPairs{down.first, down.count, 0};
    }
    for (u32 index = block_index_x(); index < set.groups; index += grid_x()) list_pairs(args, set.group[index]);
}

// --- A x --------------------------------------------------------------------------------------------------------------

// Rows of a group that an item takes, of 16 ranks each; all of them in f32, of 64 ranks.
DEVICE u32 rows_of_item(u32 len) { return len <= TILE_ROWS ? TILE_ROWS : 4 * TILE_ROWS; }

// What gate and up, or down, read.
DEVICE Rows inputs_of_site(const ExpertDeltasArgs& args) {
    const Rows &x = args.experts.x, &activated = args.experts.activated;
    if (args.is_down == 0) return x;
    return activated;
}

DEVICE u32 input_of_pair(const ExpertDeltasArgs& args, u32 pair) { return args.is_down != 0 ? pair : args.experts.order[pair]; }

// Calls `run(group, pair, item)` for this block's share of all groups with entries at the site.
template <class Count, class Run>
DEVICE void share_experts(const ExpertDeltasArgs& args, Work& work, const Count& of_pair, const Run& run) {
    const RowSet& set = *args.experts.rows;
    if (set.groups == 0) return;
    const Group last = set.group[set.groups - 1];
    const auto pairs_of_group = [&](const ExpertGroup& group) {
        if (group.len == 0) return Pairs{nullptr, 0};
        const ExpertPairs own = (args.is_down != 0 ? args.of_down : args.of_gate_up)[args.list[group.first]];
        return Pairs{own.first, own.count};
    };
    share_groups(work, {block_index_x(), grid_x()}, args.group, (last.first + last.len) * args.experts.each, pairs_of_group, of_pair, run);
}

template <class E, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
DEVICE void shrink_item(const ExpertDeltasArgs& args, const ExpertGroup& group, const Pair& pair, u32 item) {
    static_assert(RowsBlock<1, EIGHTS, DEPTH, WIDTH>::BLOCK.shared <= EXPERTS_RING, "the work lies behind the ring");
    constexpr u32 ROWS = EIGHTS * TILE_ROWS;
    const u32 parts = ceil_div(group.len, ROWS), part = item % parts, rank = item / parts * TILE_OUTS;
    const u32 stride = pair.a_stride / E::PIECE, outs = least(TILE_OUTS, pair.rank - rank);
    const RowList pairs{args.list, group.first + part * ROWS, least(ROWS, group.len - part * ROWS)};
    const Inputs x = inputs_of<E>(inputs_of_site(args));
    Slice<E, 1, EIGHTS, DEPTH, WIDTH> slice;
    begin_slice(slice, Weight{static_cast<const Piece*>(pair.a) + static_cast<u64>(rank) * stride, stride, outs, 0}, x, pairs);
#pragma unroll
    for (u32 i = 0; i < EIGHTS * slice.OF_EIGHT; i++) {
        const u32 index = least(i * slice.AT_ONCE + lane() / WIDTH, pairs.count - 1);
        slice.x_at[i] = input_of_pair(args, row_of(pairs, index)) * x.stride;
    }
    sum_slice(slice);
    block_sync();
    typename E::Bits* v = static_cast<typename E::Bits*>(args.v) + pair.first_rank + rank;
    store_tile<EIGHTS>(slice.seat, slice.sums[0], reinterpret_cast<f32*>(shared_bytes()), outs, pairs,
                       [&](u32 row, u32 out, f32 sum) { v[static_cast<u64>(row) * args.v_stride + out] = E::narrow(sum); });
}

template <class E>
DEVICE void shrink_experts(const ExpertDeltasArgs& args) {
    Work& work = *reinterpret_cast<Work*>(shared_bytes() + EXPERTS_RING);
    const auto items = [&](u32 len, const Pair& pair) { return ceil_div(pair.rank, TILE_OUTS) * ceil_div(len, rows_of_item(len)); };
    share_experts(args, work, items, [&](const ExpertGroup& group, const Pair& pair, u32 item) {
        if (group.len <= TILE_ROWS) shrink_item<E, 1, 2, 8>(args, group, pair, item);
        else shrink_item<E, 4, 2, 4>(args, group, pair, item);
    });
}

// Semantics: `v[i, first_rank + j] = Σ_k x[k] * a[j, k]`, rounded, for each pair i of a row and an expert with entries at a site and
// each of them, x being the row that gate and up, or down, read for it. The sums have the bits of gemm.
// Blocks of 256 threads, any number of them along x; SHRINK_SHARED bytes of shared memory.
KERNEL_RESIDENT(shrink_experts_bf16, 256, 2, ExpertDeltasArgs) { shrink_experts<Bf16>(args); }
KERNEL_RESIDENT(shrink_experts_f16, 256, 2, ExpertDeltasArgs) { shrink_experts<F16>(args); }

// Semantics: as above in f32, ascending inputs, nothing is narrowed. Blocks of 256 threads, any number; SHRINK_SHARED_F32.
KERNEL_RESIDENT(shrink_experts_f32, 256, 2, ExpertDeltasArgs) {
    Work& work = *reinterpret_cast<Work*>(shared_bytes() + F32_SHARED);
    const Rows x = inputs_of_site(args);
    const auto items = [&](u32, const Pair& pair) { return ceil_div(pair.rank, F32_OUTS); };
    share_experts(args, work, items, [&](const ExpertGroup& group, const Pair& pair, u32 item) {
        const u32 rank = item * F32_OUTS;
        const RowList pairs{args.list, group.first, group.len};
        const WeightF32 a{static_cast<const f32*>(pair.a) + static_cast<u64>(rank) * pair.a_stride, pair.a_stride, least(F32_OUTS, pair.rank - rank)};
        const auto read = [&](u32 row, u32 k) { return x.values[static_cast<u64>(input_of_pair(args, row_of(pairs, row))) * x.cols + k]; };
        f32* v = static_cast<f32*>(args.v) + pair.first_rank + rank;
        multiply_f32(a, pairs.count, x.cols, read, [&](u32 row, u32 j, f32 sum) { v[static_cast<u64>(row_of(pairs, row)) * args.v_stride + j] = sum; });
    });
}
