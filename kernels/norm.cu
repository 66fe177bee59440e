// RMSNorm (Zhang & Sennrich 2019), over rows and over heads, and LayerNorm (Ba et al. 2016).
#include "rows.cuh"

// The gain of a slot if it has one, else the base's weight.
DEVICE const f32* weight_of(const NormArgs& args, u32 row) {
    const Vectors gains = vectors_of(args.gains, args.rows->slots[row]);
    return gains.count > 0 ? gains.first[0].values : args.weight;
}

DEVICE f32 norm_factor(f32 squares, u32 cols, f32 eps) { return rsqrt_of(squares / static_cast<f32>(cols) + eps); }

// The sum of all 256 threads' numbers, in an order of its own: by warps, then warp by warp.
DEVICE f32 block_sum(f32 value) {
    static_assert(NORM_SHARED == 8 * sizeof(f32), "a sum for every warp");
    f32* sums = reinterpret_cast<f32*>(shared_bytes());
    const f32 of_warp = warp_sum(value);
    block_sync();  // nobody reads the sums of the row before
    if (lane() == 0) sums[warp()] = of_warp;
    block_sync();
    f32 sum = 0.0f;
    for (u32 i = 0; i < 8; i++) sum += sums[i];
    return sum;
}

// Semantics: `y[r, c] = x[r, c] * rsqrt(mean_c x[r, c]^2 + eps) * w[c]`, where w is the gain of the row's slot if `gains` has one, else
// `weight`. Sum in f32, in an order that `cols` alone decides: a thread's numbers ascending, then `block_sum`. y is written in both
// forms, and may be x. Weights and gains have `cols` numbers and begin at 16 bytes.
// Blocks of 256 threads exactly, a row at a time, any grid in x; NORM_SHARED bytes of shared memory.
template <class T>
DEVICE void rms_norm(const NormArgs& args) {
    const u32 cols = args.y.cols;
    const u32 width = quad_width(cols);
    const u32 step = 256 * width;
    for (u32 row = block_index_x(); row < args.rows->count; row += grid_x()) {
        const f32* x = row_of(args.x, row);
        f32 squares = 0.0f;
        for (u32 column = thread_index() * width; column < cols; column += step) {
            const Quad quad = load_quad(x + column, width);
            for (const f32 number : quad.at) squares = fused(number, number, squares);
        }
        const f32 factor = norm_factor(block_sum(squares), cols, args.eps);
        const f32* weight = weight_of(args, row);
        for (u32 column = thread_index() * width; column < written_cols(args.y); column += step) {
            Quad quad = {};
            if (column < cols) {
                quad = load_quad(x + column, width);
                const Quad w = load_quad(weight + column, width);
                for (u32 i = 0; i < 4; i++) quad.at[i] = quad.at[i] * factor * w.at[i];
            }
            store_both<T>(args.y, row, column, quad, width);
        }
    }
}

KERNEL(rms_norm_bf16, 256, NormArgs) { rms_norm<Bf16>(args); }
KERNEL(rms_norm_f16, 256, NormArgs) { rms_norm<F16>(args); }
KERNEL(rms_norm_f32, 256, NormArgs) { rms_norm<F32>(args); }

// Semantics: as rms_norm, in place, on every `head_dim` columns of the `heads` heads from column `first` of x; weights and gains have
// `head_dim` numbers. A lane's numbers ascending, then `warp_sum`.
// A warp for every head of a row: blocks of 256 threads, any grid in x, no shared memory.
KERNEL(rms_norm_heads, 256, NormArgs) {
    const u32 warps = block_threads() / 32;
    const u32 heads = args.rows->count * args.heads;
    for (u32 i = block_index_x() * warps + warp(); i < heads; i += grid_x() * warps) {
        const u32 row = i / args.heads;
        f32* head = row_of(args.x, row) + args.first + i % args.heads * args.head_dim;
        f32 squares = 0.0f;
        for (u32 at = lane(); at < args.head_dim; at += 32) squares = fused(head[at], head[at], squares);
        const f32 factor = norm_factor(warp_sum(squares), args.head_dim, args.eps);
        const f32* weight = weight_of(args, row);
        for (u32 at = lane(); at < args.head_dim; at += 32) head[at] = head[at] * factor * weight[at];
    }
}

// Semantics, for each row of a slot with two entries w and b at `deltas`: `y[r, c] = (y[r, c] - mean) * rsqrt(mean_c (y[r, c] - mean)^2 + eps) *
// w[c] + b[c]`, where mean is that of the row and eps `number`, in both forms. Sums as in rms_norm. w and b have `cols` numbers.
// Blocks of 256 threads exactly, a row at a time, any grid in x; NORM_SHARED bytes of shared memory.
template <class T>
DEVICE void layer_norm_rows(const VectorArgs& args) {
    const Rows& y = args.y;
    const u32 cols = y.cols, width = quad_width(cols), step = 256 * width;
    for (u32 row = block_index_x(); row < args.rows->count; row += grid_x()) {
        const Vectors vectors = vectors_of(args.deltas, args.rows->slots[row]);
        if (vectors.count != 2) continue;
        const f32 *values = row_of(y, row), *weight = vectors.first[0].values, *bias = vectors.first[1].values;
        f32 sum = 0.0f, squares = 0.0f;
        for (u32 column = thread_index() * width; column < cols; column += step) {
            const Quad quad = load_quad(values + column, width);
            for (const f32 number : quad.at) sum += number;
        }
        const f32 mean = block_sum(sum) / static_cast<f32>(cols);
        for (u32 column = thread_index() * width; column < cols; column += step) {
            const Quad quad = load_quad(values + column, width);
            for (u32 i = 0; i < width; i++) squares = fused(quad.at[i] - mean, quad.at[i] - mean, squares);
        }
        const f32 factor = norm_factor(block_sum(squares), cols, args.number);
        for (u32 column = thread_index() * width; column < written_cols(y); column += step) {
            Quad quad = {};
            if (column < cols) {
                quad = load_quad(values + column, width);
                for (u32 i = 0; i < width; i++) quad.at[i] = (quad.at[i] - mean) * factor * weight[column + i] + bias[column + i];
            }
            store_both<T>(y, row, column, quad, width);
        }
    }
}

KERNEL(layer_norm_rows_bf16, 256, VectorArgs) { layer_norm_rows<Bf16>(args); }
KERNEL(layer_norm_rows_f16, 256, VectorArgs) { layer_norm_rows<F16>(args); }
KERNEL(layer_norm_rows_f32, 256, VectorArgs) { layer_norm_rows<F32>(args); }
