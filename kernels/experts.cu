// The experts of a sparse layer: gated MLPs of which each row chooses a few. Semantics of all kernels together, in their order,
// for each row r: `p = softmax(logits[r])`; E are the `each` experts of the highest logits, of equal ones the lower index first;
// `w_e = p_e`, with `renormalise` divided by their sum; `y[r] = Σ_{e in E, ascending} w_e * down_e(act(gate_e x[r]) ∘ up_e x[r])`.
//
// Groups are known on the device alone. A grid has a block along x for every group that there may be; those beyond the last
// return. Blocks of one expert are neighbours, so that its weights come from memory once.
//
// Where adapters have deltas of experts (expert_deltas.cu), the same products are made by kernels that add them to the sums of a block
// before anything else is made of those: `added(pair, output, sum)`.
#include "expert_deltas.cuh"
#include "experts.cuh"
#include "gemm_f32.cuh"
#include "gemm_tiles.cuh"
#include "rows.cuh"

// Semantics: `chosen`, ascending, and `weights` of each row. Blocks of 256 threads, any grid, a warp a row; no shared memory.
KERNEL(route_experts, 256, ExpertsArgs) {
    const u32 warps = block_threads() / WARP;
    for (u32 row = block_index_x() * warps + warp(); row < args.rows->count; row += grid_x() * warps) route_row(args, row);
}

// Semantics: `pairs`, `order`, `groups` and `group` from `chosen`: pairs by expert, within an expert by row.
// A block of up to 1024 threads for each expert, shared bytes 4 * experts + 136. Each reads all choices by itself.
KERNEL(group_experts, 1024, ExpertsArgs) {
    const u32 experts = args.logits.cols, expert = block_index_x();
    u32* counts = reinterpret_cast<u32*>(shared_bytes());
    u32* of_warps = counts + experts;
    Grouping& own = *reinterpret_cast<Grouping*>(of_warps + WARP);
    for (u32 i = thread_index(); i < experts; i += block_threads()) counts[i] = 0;
    block_sync();
    const Run run = run_of_warp(args.rows->count * args.each);
    u32 of_warp = 0;
    each_choice(args.chosen, run, expert, [&](u32 choice, u32 found, u32 lanes) {
        if (choice < run.end) add_shared(counts + found, 1);
        of_warp += count_bits(lanes);
    });
    if (lane() == 0) of_warps[warp()] = of_warp;
    block_sync();
    if (warp() == 0) {
        const Grouping found = grouping_of(counts, expert, args.rows_of_group);
        if (lane() == 0) own = found;
    }
    block_sync();
    write_groups(args, own, expert, counts[expert]);
    if (of_warp == 0) return;
    u32 pair = own.first;
    for (u32 i = 0; i < warp(); i++) pair += of_warps[i];
    each_choice(args.chosen, run, expert, [&](u32 choice, u32 found, u32 lanes) {
        if (found == expert) {
            const u32 place = pair + count_bits(lanes & ((1u << lane()) - 1));
            args.order[place] = choice / args.each;
            args.pairs[choice] = place;
        }
        pair += count_bits(lanes);
    });
}

DEVICE const Expert& expert_of(const ExpertsArgs& args, const Group& group) { return args.experts[group.slot]; }

DEVICE f32 gated(const ExpertsArgs& args, f32 gate, f32 up) { return activate(args.activation, gate) * up; }

// --- few rows of an expert --------------------------------------------------------------------------------------------

// Up to 8 * EIGHTS rows of an expert: 16 outputs of gate and the same ones of up.
template <class E, u32 EIGHTS, u32 DEPTH, u32 WIDTH, class Added>
DEVICE void gate_up_of_rows(const ExpertsArgs& args, const Group& group, u32 column, const Added& added) {
    const Rows& y = args.activated;
    const u32 stride = args.gate_up_stride / E::PIECE, outs = least(TILE_OUTS, y.cols - column);
    const Piece* gate = static_cast<const Piece*>(expert_of(args, group).gate_up) + static_cast<u64>(column) * stride;
    static_assert(RowsBlock<2, EIGHTS, DEPTH, WIDTH>::BLOCK.shared <= EXPERTS_ROWS.shared, "the ring fits");
    Slice<E, 2, EIGHTS, DEPTH, WIDTH> slice;
    begin_slice(slice, Weight{gate, stride, outs, 0}, inputs_of<E>(args.x), RowList{args.order, group.first, group.len});
    slice.tile_at[1] = y.cols * stride;
    slice.outs[1] = outs;
    sum_slice(slice);
    block_sync();
    f32* gates = reinterpret_cast<f32*>(shared_bytes());
    f32* ups = gates + partial_numbers<EIGHTS>();
    put_partial(slice.seat, slice.sums[0], gates);
    put_partial(slice.seat, slice.sums[1], ups);
    block_sync();
    typename E::Bits* input = static_cast<typename E::Bits*>(y.input);
#pragma unroll 1
    for (u32 i = thread_index(); i < TILE_OUTS * group.len; i += SLICES * WARP) {
        const u32 out = i % TILE_OUTS, index = i / TILE_OUTS, pair = group.first + index;
        if (out >= outs) continue;
        const f32 of_gate = added(pair, column + out, sum_partial<EIGHTS>(gates, index, out));
        const f32 of_up = added(pair, y.cols + column + out, sum_partial<EIGHTS>(ups, index, out));
        input[static_cast<u64>(pair) * y.input_stride + column + out] = E::narrow(gated(args, of_gate, of_up));
    }
}

template <class E, u32 EIGHTS, u32 DEPTH, u32 WIDTH, class Added>
DEVICE void down_of_rows(const ExpertsArgs& args, const Group& group, u32 out, const Added& added) {
    const Rows& y = args.outputs;
    const u32 stride = args.down_stride / E::PIECE;
    const Piece* down = static_cast<const Piece*>(expert_of(args, group).down) + static_cast<u64>(out) * stride;
    const Weight w{down, stride, least(2 * TILE_OUTS, y.cols - out), out};
    const auto write = [&](u32 pair, u32 c, f32 sum) { row_of(y, pair)[out + c] = added(pair, out + c, sum); };
    multiply_rows<E, 2, EIGHTS, DEPTH, WIDTH>(w, inputs_of<E>(args.activated), RowList{nullptr, group.first, group.len}, write);
}

template <class E, class Added>
DEVICE void gate_up_rows(const ExpertsArgs& args, const Added& added) {
    if (block_index_x() >= *args.groups) return;
    const Group group = args.group[block_index_x()];
    const u32 column = block_index_y() * TILE_OUTS;
    if (group.len <= TILE_ROWS) gate_up_of_rows<E, 1, 2, 8>(args, group, column, added);
    else if (group.len <= 2 * TILE_ROWS) gate_up_of_rows<E, 2, 2, 8>(args, group, column, added);
    else gate_up_of_rows<E, 4, 3, 4>(args, group, column, added);
}

template <class E, class Added>
DEVICE void down_rows(const ExpertsArgs& args, const Added& added) {
    if (block_index_x() >= *args.groups) return;
    const Group group = args.group[block_index_x()];
    const u32 out = block_index_y() * 2 * TILE_OUTS;
    if (group.len <= TILE_ROWS) down_of_rows<E, 1, 2, 8>(args, group, out, added);
    else if (group.len <= 2 * TILE_ROWS) down_of_rows<E, 2, 2, 8>(args, group, out, added);
    else down_of_rows<E, 4, 3, 4>(args, group, out, added);
}

// Semantics: `activated[i, c] = act(gate_e x[r])[c] * (up_e x[r])[c]` for each pair i of a row r and an expert e, rounded. The sums
// have the bits of gemm. Groups of up to 32 pairs. Blocks of 256 threads, and of EXPERTS_ROWS: grid (groups, ceil(inner / 16)).
KERNEL_RESIDENT(gemm_gate_up_rows_bf16, 256, 2, ExpertsArgs) { gate_up_rows<Bf16>(args, nothing_added()); }
KERNEL_RESIDENT(gemm_gate_up_rows_f16, 256, 2, ExpertsArgs) { gate_up_rows<F16>(args, nothing_added()); }

// Semantics: `outputs[i, c] = Σ_k activated[i, k] * down_e[c, k]` for each pair i of an expert e. The bits of gemm. Groups of up to
// 32 pairs. Blocks of 256 threads, and of EXPERTS_ROWS: grid (groups, ceil(hidden / 32)).
KERNEL_RESIDENT(gemm_down_rows_bf16, 256, 2, ExpertsArgs) { down_rows<Bf16>(args, nothing_added()); }
KERNEL_RESIDENT(gemm_down_rows_f16, 256, 2, ExpertsArgs) { down_rows<F16>(args, nothing_added()); }

// --- many rows of an expert -------------------------------------------------------------------------------------------

// Outputs of gate in a tile; as many are of up, 16 of the one beside 16 of the other, so that a warp has both.
constexpr u32 GATED_OUTS = TILES_OUTS / 2;
// Numbers from one row of sums in shared memory to the next: gate, then up. Lanes that store together meet no bank twice.
constexpr u32 GATED_PITCH = TILES_OUTS + 4;

template <class E, u32 ROWS>
DEVICE void put_gated(const TileSums<E, ROWS>& tile, f32* sums) {
    typedef TileSums<E, ROWS> Sums;
    static_assert(Sums::TILES % 2 == 0, "a warp has gate and up of the same outputs");
    const u32 row = warp() / Sums::OUT_WARPS * TILES_EIGHTS * TILE_ROWS + lane() % 4 * 2;
    const u32 column = warp() % Sums::OUT_WARPS * (Sums::TILES / 2) * TILE_OUTS + lane() / 4;
#pragma unroll
    for (u32 part = 0; part < Sums::TILES * 2; part++) {
        const u32 c = part / 2 % 2 * GATED_OUTS + column + part / 4 * TILE_OUTS + part % 2 * 8;
#pragma unroll
        for (u32 i = 0; i < TILES_EIGHTS * 2; i++) {
            sums[(row + i / 2 * TILE_ROWS + i % 2) * GATED_PITCH + c] = tile.total[part / 2][i / 2][part % 2 * 2 + i % 2];
        }
    }
}

// Rounds what is made of the sums of a tile; zeros behind the last column.
template <class E>
DEVICE void store_gated(const ExpertsArgs& args, const Group& group, u32 column, const f32* sums) {
    const Rows& y = args.activated;
    typename E::Bits* input = static_cast<typename E::Bits*>(y.input) + static_cast<u64>(group.first) * y.input_stride;
    constexpr u32 QUADS = GATED_OUTS / 4;
#pragma unroll 1
    for (u32 i = thread_index(); i < group.len * QUADS; i += TILES_THREADS) {
        const u32 row = i / QUADS, own = i % QUADS * 4;
        const Quad gate = load_quad(sums + row * GATED_PITCH + own, 4), up = load_quad(sums + row * GATED_PITCH + GATED_OUTS + own, 4);
        Quad quad = {};
        for (u32 j = 0; j < 4; j++) {
            if (column + own + j < y.cols) quad.at[j] = gated(args, gate.at[j], up.at[j]);
        }
        if (column + own < y.input_stride) store_narrow<E>(input + static_cast<u64>(row) * y.input_stride + column + own, quad, 4);
    }
}

// `complete(group, column, sums)` comes between the sums and the activation.
template <class E, u32 ROWS, class Complete>
DEVICE void gate_up_tiles(const ExpertsArgs& args, const Complete& complete) {
    if (block_index_x() >= *args.groups) return;
    const Group group = args.group[block_index_x()];
    const u32 column = block_index_y() * GATED_OUTS, inner = args.activated.cols;
    const u32 stride = args.gate_up_stride / E::PIECE, outs = least(GATED_OUTS, inner - column);
    const Inputs x = inputs_of<E>(args.x);
    const RowList rows{args.order, group.first, group.len};
    const Piece* gate = static_cast<const Piece*>(expert_of(args, group).gate_up) + static_cast<u64>(column) * stride;
    const auto weight_at = [&](u32 row) {
        const u32 out = least(row / (2 * TILE_OUTS) * TILE_OUTS + row % TILE_OUTS, outs - 1);
        return (row / TILE_OUTS % 2 * inner + out) * stride;
    };
    TileSums<E, ROWS> tile = {};
    sum_tile(tile, copies_by<TILES_OUTS / 32>(gate, TILES_OUTS, weight_at),
             copies_by<ROWS / 32>(x.first, group.len, [&](u32 row) { return row_of(rows, row) * x.stride; }), x.pieces);
    f32* sums = reinterpret_cast<f32*>(shared_bytes());
    block_sync();
    put_gated(tile, sums);
    block_sync();
    complete(group, column, sums);
    store_gated<E>(args, group, column, sums);
}

template <class E, u32 ROWS>
DEVICE void down_tile(const ExpertsArgs& args, const Group& group) {
    const u32 out = block_index_y() * TILES_OUTS, stride = args.down_stride / E::PIECE;
    const Inputs x = inputs_of<E>(args.activated);
    const Matrix down{expert_of(args, group).down, args.outputs.cols, args.activated.cols, args.down_stride, 0};
    const Piece* w = static_cast<const Piece*>(down.values) + static_cast<u64>(out) * stride;
    TileSums<E, ROWS> tile = {};
    sum_tile(tile, copies_of<TILES_OUTS / 32>(w, stride, least(TILES_OUTS, down.rows - out)),
             copies_of<ROWS / 32>(x.first + static_cast<u64>(group.first) * x.stride, x.stride, group.len), x.pieces);
    store_tiles(tile, GemmArgs{nullptr, args.activated, down, args.outputs, 0, 0}, group.first, group.len, out);
}

template <class E, u32 ROWS>
DEVICE void down_tiles(const ExpertsArgs& args) {
    if (block_index_x() < *args.groups) down_tile<E, ROWS>(args, args.group[block_index_x()]);
}

// With what adapters add to the sums where they lie.
template <class E, u32 ROWS>
DEVICE void gate_up_tiles_with_deltas(const ExpertDeltasArgs& args) {
    const u32 inner = args.experts.activated.cols;
    gate_up_tiles<E, ROWS>(args.experts, [&](const Group& group, u32 column, f32* sums) {
#pragma unroll 1
        for (u32 i = thread_index(); i < group.len * TILES_OUTS; i += TILES_THREADS) {
            const u32 row = i / TILES_OUTS, place = i % TILES_OUTS, out = column + place % GATED_OUTS;
            if (out >= inner) continue;
            f32& number = sums[row * GATED_PITCH + place];
            number = with_deltas<E>(args, args.of_gate_up, group.first + row, place / GATED_OUTS * inner + out, number);
        }
        block_sync();
    });
}

// The same.
template <class E, u32 ROWS>
DEVICE void down_tiles_with_deltas(const ExpertDeltasArgs& args) {
    if (block_index_x() >= *args.experts.groups) return;
    const Group group = args.experts.group[block_index_x()];
    const u32 first = block_index_y() * TILES_OUTS, outs = least(TILES_OUTS, args.experts.outputs.cols - first);
    down_tile<E, ROWS>(args.experts, group);
    block_sync();
#pragma unroll 1
    for (u32 i = thread_index(); i < group.len * TILES_OUTS; i += TILES_THREADS) {
        const u32 pair = group.first + i / TILES_OUTS, out = i % TILES_OUTS;
        if (out >= outs || args.of_down[pair].count == 0) continue;
        f32& number = row_of(args.experts.outputs, pair)[first + out];
        number = with_deltas<E>(args, args.of_down, pair, first + out, number);
    }
}

// Semantics: as gemm_gate_up_rows, the same bits, for groups of up to 128 (64) pairs. Blocks of 256 threads, grid (groups,
// ceil(inner / 64)), shared bytes 98304 (73728).
KERNEL(gemm_gate_up_tiles_bf16, 256, ExpertsArgs) { gate_up_tiles<Bf16, 128>(args, [](const Group&, u32, f32*) {}); }
KERNEL(gemm_gate_up_tiles_f16, 256, ExpertsArgs) { gate_up_tiles<F16, 128>(args, [](const Group&, u32, f32*) {}); }
KERNEL(gemm_gate_up_tiles64_bf16, 256, ExpertsArgs) { gate_up_tiles<Bf16, 64>(args, [](const Group&, u32, f32*) {}); }
KERNEL(gemm_gate_up_tiles64_f16, 256, ExpertsArgs) { gate_up_tiles<F16, 64>(args, [](const Group&, u32, f32*) {}); }

// Semantics: as gemm_down_rows, the same bits, for groups of up to 128 (64) pairs. Blocks of 256 threads, grid (groups,
// ceil(hidden / 128)), shared bytes 98304 (73728).
KERNEL(gemm_down_tiles_bf16, 256, ExpertsArgs) { down_tiles<Bf16, 128>(args); }
KERNEL(gemm_down_tiles_f16, 256, ExpertsArgs) { down_tiles<F16, 128>(args); }
KERNEL(gemm_down_tiles64_bf16, 256, ExpertsArgs) { down_tiles<Bf16, 64>(args); }
KERNEL(gemm_down_tiles64_f16, 256, ExpertsArgs) { down_tiles<F16, 64>(args); }

// --- f32 --------------------------------------------------------------------------------------------------------------

template <class Added>
DEVICE void gate_up_f32(const ExpertsArgs& args, const Added& added) {
    if (block_index_x() >= *args.groups) return;
    const Group group = args.group[block_index_x()];
    const u32 column = block_index_y() * F32_OUTS, inner = args.activated.cols, stride = args.gate_up_stride;
    const u32 outs = least(F32_OUTS, inner - column);
    const f32* gate = static_cast<const f32*>(expert_of(args, group).gate_up) + static_cast<u64>(column) * stride;
    const auto read = [&](u32 row, u32 k) { return row_of(args.x, args.order[group.first + row])[k]; };
    // The thread that has a number of gate has the one of up.
    const auto place = [&](u32 row, u32 c) { return row_of(args.activated, group.first + row) + column + c; };
    multiply_f32(WeightF32{gate, stride, outs}, group.len, args.x.cols, read,
                 [&](u32 row, u32 c, f32 sum) { *place(row, c) = added(group.first + row, column + c, sum); });
    multiply_f32(WeightF32{gate + static_cast<u64>(inner) * stride, stride, outs}, group.len, args.x.cols, read, [&](u32 row, u32 c, f32 sum) {
        *place(row, c) = gated(args, *place(row, c), added(group.first + row, inner + column + c, sum));
    });
}

template <class Added>
DEVICE void down_f32(const ExpertsArgs& args, const Added& added) {
    if (block_index_x() >= *args.groups) return;
    const Group group = args.group[block_index_x()];
    const u32 out = block_index_y() * F32_OUTS, stride = args.down_stride;
    const f32* down = static_cast<const f32*>(expert_of(args, group).down) + static_cast<u64>(out) * stride;
    const auto read = [&](u32 row, u32 k) { return row_of(args.activated, group.first + row)[k]; };
    multiply_f32(WeightF32{down, stride, least(F32_OUTS, args.outputs.cols - out)}, group.len, args.activated.cols, read,
                 [&](u32 row, u32 c, f32 sum) { row_of(args.outputs, group.first + row)[out + c] = added(group.first + row, out + c, sum); });
}

// Semantics: as above in f32, nothing is narrowed. Groups of up to 64 pairs. Blocks of 256 threads, grid (groups, ceil(inner / 64)),
// shared bytes 8704.
KERNEL(gemm_gate_up_f32, 256, ExpertsArgs) { gate_up_f32(args, nothing_added()); }

// Semantics: as above in f32. Groups of up to 64 pairs. Blocks of 256 threads, grid (groups, ceil(hidden / 64)), shared bytes 8704.
KERNEL(gemm_down_f32, 256, ExpertsArgs) { down_f32(args, nothing_added()); }

// --- with deltas ------------------------------------------------------------------------------------------------------

// Semantics: as gemm_gate_up above in every form, of `gate_e x[r]` and `up_e x[r]` with what adapters add to them, in the order of their
// entries: `sum + scaling * (b v)` for each, one rounding each, b v one accumulator over ascending ranks. The same grids and shared bytes.
KERNEL_RESIDENT(gemm_gate_up_rows_deltas_bf16, 256, 2, ExpertDeltasArgs) { gate_up_rows<Bf16>(args.experts, added_by<Bf16>(args, args.of_gate_up)); }
KERNEL_RESIDENT(gemm_gate_up_rows_deltas_f16, 256, 2, ExpertDeltasArgs) { gate_up_rows<F16>(args.experts, added_by<F16>(args, args.of_gate_up)); }
KERNEL(gemm_gate_up_tiles_deltas_bf16, 256, ExpertDeltasArgs) { gate_up_tiles_with_deltas<Bf16, 128>(args); }
KERNEL(gemm_gate_up_tiles_deltas_f16, 256, ExpertDeltasArgs) { gate_up_tiles_with_deltas<F16, 128>(args); }
KERNEL(gemm_gate_up_tiles64_deltas_bf16, 256, ExpertDeltasArgs) { gate_up_tiles_with_deltas<Bf16, 64>(args); }
KERNEL(gemm_gate_up_tiles64_deltas_f16, 256, ExpertDeltasArgs) { gate_up_tiles_with_deltas<F16, 64>(args); }
KERNEL(gemm_gate_up_deltas_f32, 256, ExpertDeltasArgs) { gate_up_f32(args.experts, added_by<F32>(args, args.of_gate_up)); }

// Semantics: as gemm_down above in every form, with what adapters add. The same grids and shared bytes.
KERNEL_RESIDENT(gemm_down_rows_deltas_bf16, 256, 2, ExpertDeltasArgs) { down_rows<Bf16>(args.experts, added_by<Bf16>(args, args.of_down)); }
KERNEL_RESIDENT(gemm_down_rows_deltas_f16, 256, 2, ExpertDeltasArgs) { down_rows<F16>(args.experts, added_by<F16>(args, args.of_down)); }
KERNEL(gemm_down_tiles_deltas_bf16, 256, ExpertDeltasArgs) { down_tiles_with_deltas<Bf16, 128>(args); }
KERNEL(gemm_down_tiles_deltas_f16, 256, ExpertDeltasArgs) { down_tiles_with_deltas<F16, 128>(args); }
KERNEL(gemm_down_tiles64_deltas_bf16, 256, ExpertDeltasArgs) { down_tiles_with_deltas<Bf16, 64>(args); }
KERNEL(gemm_down_tiles64_deltas_f16, 256, ExpertDeltasArgs) { down_tiles_with_deltas<F16, 64>(args); }
KERNEL(gemm_down_deltas_f32, 256, ExpertDeltasArgs) { down_f32(args.experts, added_by<F32>(args, args.of_down)); }

// Semantics: `y[r, c] = Σ w * outputs[i, c]` over the pairs i of row r, by ascending expert, from 0 on.
// Blocks of 256 threads, any grid (enough is one thread for every 4 numbers), no shared memory.
KERNEL(combine_experts, 256, ExpertsArgs) {
    each_quad(args.rows->count, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        Quad sum = {};
        for (u32 i = row * args.each; i < (row + 1) * args.each; i++) {
            const f32 weight = args.weights[i];
            const Quad output = load_quad(row_of(args.outputs, args.pairs[i]) + column, width);
            for (u32 j = 0; j < 4; j++) sum.at[j] += weight * output.at[j];
        }
        store_quad(row_of(args.y, row) + column, sum, width);
    });
}
