// Rows of embedding tables. All kernels: blocks of 256 threads, any grid in x, no shared memory.
#include "rows.cuh"

// A quad of a row of a table, times `scale`.
template <class T>
DEVICE void embed_quad(const void* table, u64 at, u32 width, f32 scale, f32* y) {
    Quad quad = load_narrow<T>(static_cast<const typename T::Bits*>(table) + at, width);
    for (f32& number : quad.at) number = scale * number;
    store_quad(y, quad, width);
}

// Semantics: for each row r of the step with a token id: `y[r, :] = scale * table[id, :]`. Rows whose id is absent, or one that the table
// does not have, are left as they are.
// table [vocab, cols] of T, y [rows, cols]; y gets no input form.
template <class T>
DEVICE void embed(const EmbedArgs& args) {
    const Step& step = *args.step;
    each_quad(step.rows, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const i32 id = step.ids[row];
        if (id < 0 || static_cast<u32>(id) >= args.table.rows) return;
        const u64 at = static_cast<u64>(id) * args.table.stride + column;
        embed_quad<T>(args.table.values, at, width, args.scale, row_of(args.y, row) + column);
    });
}

KERNEL(embed_bf16, 256, EmbedArgs) { embed<Bf16>(args); }
KERNEL(embed_f16, 256, EmbedArgs) { embed<F16>(args); }
KERNEL(embed_f32, 256, EmbedArgs) { embed<F32>(args); }

// Which of the rows in place of the base's is that of a token; `count` where none is.
DEVICE u32 index_of(const ReplacedRows& replaced, u32 id) {
    u32 low = 0, high = replaced.count;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (replaced.ids[middle] < id) low = middle + 1;
        else high = middle;
    }
    return low < replaced.count && replaced.ids[low] == id ? low : replaced.count;
}

// Semantics, for each row r of the step with a token id that is `ids[i]` of its slot's entry: `y[r, :] = scale * rows[i, :]`. rows
// [count, cols] of T, y [rows, cols]; y gets no input form. `rows` of the arguments are all rows of the step.
template <class T>
DEVICE void replace_embeddings(const EmbedLowRankArgs& args) {
    each_quad(args.rows->count, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const i32 id = args.step->ids[row];
        const ReplacedRows* replaced = replaced_of(args.deltas, args.rows->slots[row]);
        if (id < 0 || !replaced) return;
        const u32 index = index_of(*replaced, static_cast<u32>(id));
        if (index == replaced->count) return;
        const u64 at = static_cast<u64>(index) * replaced->stride + column;
        embed_quad<T>(replaced->rows, at, width, args.scale, row_of(args.y, row) + column);
    });
}

KERNEL(replace_embeddings_bf16, 256, EmbedLowRankArgs) { replace_embeddings<Bf16>(args); }
KERNEL(replace_embeddings_f16, 256, EmbedLowRankArgs) { replace_embeddings<F16>(args); }
KERNEL(replace_embeddings_f32, 256, EmbedLowRankArgs) { replace_embeddings<F32>(args); }

// Column `column` of B, times what A has for a token: one sum over the ranks in ascending order. Columns of A and B beyond the rank
// are zeros.
template <class T>
DEVICE f32 embedded(const Pair& pair, u32 id, u32 column) {
    typedef typename T::Bits Bits;
    const Bits* a = static_cast<const Bits*>(pair.a) + static_cast<u64>(id) * pair.a_stride;
    const Bits* b = static_cast<const Bits*>(pair.b) + static_cast<u64>(column) * pair.b_stride;
    f32 sum = 0.0f;
    for (u32 rank = 0; rank < pair.rank; rank += 4) {
        const Quad from_a = load_narrow<T>(a + rank, 4);
        const Quad from_b = load_narrow<T>(b + rank, 4);
        for (u32 i = 0; i < 4; i++) sum = fused(from_b.at[i], from_a.at[i], sum);
    }
    return sum;
}

// Semantics, for each row of the step with a token id of a slot with entries: `y[r, columns] += scale * scaling * Σ_j B[:, j] * A[j, id]`,
// A given transposed as `a: [vocab, rank]`, `b: [columns, rank]`, both of T: what A has is rounded to T already, as the input of B is. `rows` are
// all rows of the step, and tokens that A does not have change nothing. A thread for every number of y, the entries of a slot in order.
template <class T>
DEVICE void embedding_low_rank(const EmbedLowRankArgs& args) {
    each_quad(args.rows->count, args.y.cols, 1, [&](u32 row, u32 column, u32) {
        const i32 id = args.step->ids[row];
        const Pairs pairs = pairs_of(args.deltas, args.rows->slots[row]);
        if (id < 0 || pairs.count == 0) return;
        f32* y = row_of(args.y, row) + column;
        for (u32 entry = 0; entry < pairs.count; entry++) {
            const Pair pair = pairs.first[entry];
            const u32 at = column - pair.column;  // wraps below the first column, and is too large then
            if (at < pair.columns && static_cast<u32>(id) < pair.a_rows) *y += args.scale * pair.scaling * embedded<T>(pair, id, at);
        }
    });
}

KERNEL(embedding_low_rank_bf16, 256, EmbedLowRankArgs) { embedding_low_rank<Bf16>(args); }
KERNEL(embedding_low_rank_f16, 256, EmbedLowRankArgs) { embedding_low_rank<F16>(args); }
KERNEL(embedding_low_rank_f32, 256, EmbedLowRankArgs) { embedding_low_rank<F32>(args); }
