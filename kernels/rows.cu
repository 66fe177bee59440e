// Kernels that take rows and give rows, a quad of numbers by a thread. All of them: blocks of 256 threads, any grid in x (enough
// is one thread for every 4 numbers of the largest step), no shared memory but for `rotate_input`. What they do to a number depends
// on nothing else.
#include "rows.cuh"
#include "sparse.cuh"

// Semantics: `y[start + i, :] = x[first + i, :]` for each i below `count`. x and y have the same columns.
KERNEL(copy_rows, 256, CopyRowsArgs) {
    each_quad(args.count, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const Quad quad = load_quad(row_of(args.x, args.first + row) + column, width);
        store_quad(row_of(args.y, args.start + row) + column, quad, width);
    });
}

// Semantics: `y[r, :] = x[source of r, :]`, where x holds all rows of the step. x and y have the same columns.
KERNEL(gather_rows, 256, RowsArgs) {
    each_quad(args.rows->count, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const Quad quad = load_quad(row_of(args.x, args.rows->sources[row]) + column, width);
        store_quad(row_of(args.y, row) + column, quad, width);
    });
}

// Semantics: for each row r of the step: `y[place of r, :] = x[r, :]`. x and y have the same columns.
KERNEL(keep_rows, 256, KeptRowsArgs) {
    each_quad(args.step->rows, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const Quad quad = load_quad(row_of(args.x, row) + column, width);
        store_quad(row_of(args.y, args.step->kv_places[row]) + column, quad, width);
    });
}

// Semantics: for each row r of the step: `y[r, :] = x[place of r, :]`. x and y have the same columns.
KERNEL(recall_rows, 256, KeptRowsArgs) {
    each_quad(args.step->rows, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const Quad quad = load_quad(row_of(args.x, args.step->kv_places[row]) + column, width);
        store_quad(row_of(args.y, row) + column, quad, width);
    });
}

// Semantics: for each span i: `y[i, :] = ((s + x[r0, :]) + x[r1, :]) + …` over its rows of x, ascending, where s is what it goes on
// from; without that it begins with `x[r0, :]`. x and y have the same columns.
KERNEL(pool_rows, 256, PoolArgs) {
    each_quad(args.rows->count, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const PoolSpan span = args.spans[row];
        u32 next = span.first;
        Quad sum = span.onto ? load_quad(span.onto + column, width) : load_quad(row_of(args.x, next++) + column, width);
        for (; next < span.first + span.rows; next++) {
            const Quad x = load_quad(row_of(args.x, next) + column, width);
            for (u32 i = 0; i < 4; i++) sum.at[i] += x.at[i];
        }
        store_quad(row_of(args.y, row) + column, sum, width);
    });
}

// Semantics: `y[r, :] += x[r, :]`. x and y have the same columns.
KERNEL(add, 256, RowsArgs) {
    each_quad(args.rows->count, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const Quad x = load_quad(row_of(args.x, row) + column, width);
        Quad y = load_quad(row_of(args.y, row) + column, width);
        for (u32 i = 0; i < 4; i++) y.at[i] += x.at[i];
        store_quad(row_of(args.y, row) + column, y, width);
    });
}

// Semantics: `y[r, c] = act(x[r, c]) * x[r, n + c]`, x is `[rows, 2n]` (gate then up), y `[rows, n]`, in both forms.
template <class T>
DEVICE void gated_activation(const RowsArgs& args) {
    const Rows& y = args.y;
    each_quad(args.rows->count, written_cols(y), quad_width(y.cols), [&](u32 row, u32 column, u32 width) {
        Quad quad = {};
        if (column < y.cols) {
            const Quad gate = load_quad(row_of(args.x, row) + column, width);
            const Quad up = load_quad(row_of(args.x, row) + y.cols + column, width);
            for (u32 i = 0; i < 4; i++) quad.at[i] = activate(args.activation, gate.at[i]) * up.at[i];
        }
        store_both<T>(y, row, column, quad, width);
    });
}

KERNEL(gated_activation_bf16, 256, RowsArgs) { gated_activation<Bf16>(args); }
KERNEL(gated_activation_f16, 256, RowsArgs) { gated_activation<F16>(args); }
KERNEL(gated_activation_f32, 256, RowsArgs) { gated_activation<F32>(args); }

// Semantics: the input form of x from its values, for what reads x as the input of a GEMM: rounded to T, nearest even, zeros
// from `cols` to `input_stride`.
template <class T>
DEVICE void round_rows(const RowsArgs& args) {
    const Rows& x = args.x;
    typename T::Bits* input = static_cast<typename T::Bits*>(x.input);
    each_quad(args.rows->count, x.input_stride, quad_width(x.cols), [&](u32 row, u32 column, u32 width) {
        Quad quad = {};
        if (column < x.cols) quad = load_quad(row_of(x, row) + column, width);
        store_narrow<T>(input + static_cast<u64>(row) * x.input_stride + column, quad, width);
    });
}

KERNEL(round_rows_bf16, 256, RowsArgs) { round_rows<Bf16>(args); }
KERNEL(round_rows_f16, 256, RowsArgs) { round_rows<F16>(args); }
KERNEL(round_rows_f32, 256, RowsArgs) { round_rows<F32>(args); }

// Semantics: `y[r, c] += bias[c]`; `vector` has as many numbers as y has columns and begins at 16 bytes.
KERNEL(add_bias, 256, VectorArgs) {
    each_quad(args.rows->count, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const Quad bias = load_quad(args.vector + column, width);
        Quad y = load_quad(row_of(args.y, row) + column, width);
        for (u32 i = 0; i < 4; i++) y.at[i] += bias.at[i];
        store_quad(row_of(args.y, row) + column, y, width);
    });
}

// Semantics: `y[r, c] = tanh(y[r, c] / cap) * cap`, where cap is `number`.
KERNEL(softcap, 256, VectorArgs) {
    each_quad(args.rows->count, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        Quad y = load_quad(row_of(args.y, row) + column, width);
        for (f32& number : y.at) number = tanh_of(number / args.number) * args.number;
        store_quad(row_of(args.y, row) + column, y, width);
    });
}

struct Multiply {
    DEVICE f32 of(f32 y, f32 value) { return y * value; }
};

struct Add {
    DEVICE f32 of(f32 y, f32 value) { return y + value; }
};

// What the entries of a slot, in order, make of a quad at `column`.
template <class Op>
DEVICE void apply_vectors(const Vectors& vectors, u32 column, u32 width, Quad& quad) {
    for (u32 entry = 0; entry < vectors.count; entry++) {
        const ColumnVector vector = vectors.first[entry];
        for (u32 i = 0; i < 4; i++) {
            const u32 at = column + i - vector.column;  // wraps below the first column, and is too large then
            if (i < width && at < vector.columns) quad.at[i] = Op::of(quad.at[i], vector.values[at]);
        }
    }
}

template <class Op>
DEVICE void vector_rows(const VectorArgs& args) {
    each_quad(args.rows->count, args.y.cols, quad_width(args.y.cols), [&](u32 row, u32 column, u32 width) {
        const Vectors vectors = vectors_of(args.deltas, args.rows->slots[row]);
        if (vectors.count == 0) return;
        Quad y = load_quad(row_of(args.y, row) + column, width);
        apply_vectors<Op>(vectors, column, width, y);
        store_quad(row_of(args.y, row) + column, y, width);
    });
}

// Semantics: `y[r, columns] *= g` for each entry of the row's slot.
KERNEL(scale_rows, 256, VectorArgs) { vector_rows<Multiply>(args); }

// Semantics: `y[r, columns] += b` for each entry of the row's slot.
KERNEL(bias_rows, 256, VectorArgs) { vector_rows<Add>(args); }

// Semantics: `y[r, columns] = c1 ∘ y[r, columns] + c2 ∘ rot(y[r, columns])` for each entry of the row's slot, whose columns are no
// other's. A thread takes the two numbers of a pair; the pairs of a slot's entries are counted one entry behind the other.
KERNEL(rotate_outputs, 256, VectorArgs) {
    each_quad(args.rows->count, args.y.cols / 2, 1, [&](u32 row, u32 pair, u32) {
        const ColumnRotations column_rotations = column_rotations_of(args.deltas, args.rows->slots[row]);
        for (u32 entry = 0; entry < column_rotations.count; entry++) {
            const ColumnRotation rotation = column_rotations.first[entry];
            if (pair >= rotation.columns / 2) {
                pair -= rotation.columns / 2;
                continue;
            }
            const u32 half = rotation.group / 2;
            const u32 first = pair / half * rotation.group + pair % half, second = first + half;
            const f32 *c1 = rotation.c, *c2 = rotation.c + rotation.columns;
            f32* y = row_of(args.y, row) + rotation.column;
            const f32 y1 = y[first], y2 = y[second];
            y[first] = c1[first] * y1 - c2[first] * y2;
            y[second] = c1[second] * y2 + c2[second] * y1;
            return;
        }
    });
}

// Semantics: `y[r, c] += Σ S[c - c0, k] * x[r, k]` over the k that row `c - c0` of S holds, for each entry `{S, columns: c0..c1}` of
// the row's slot and each of its columns c of which S holds any. A warp takes a column of a group of rows. Lane l sums the numbers
// l, l + 32, ... of the row of S, ascending and fused, and the lanes are added in a butterfly. x is rounded as for gemm.
KERNEL(sparse_bf16, 256, SparseArgs) { sparse<Bf16>(args); }
KERNEL(sparse_f16, 256, SparseArgs) { sparse<F16>(args); }
KERNEL(sparse_f32, 256, SparseArgs) { sparse<F32>(args); }

// Semantics: `y[r, :] = g ∘ x[r, :]` where the row's slot has an entry g, else `x[r, :]`, in both forms. x and y have the same columns.
template <class T>
DEVICE void scale_input(const VectorArgs& args) {
    const Rows& y = args.y;
    each_quad(args.rows->count, written_cols(y), quad_width(y.cols), [&](u32 row, u32 column, u32 width) {
        Quad quad = {};
        if (column < y.cols) {
            quad = load_quad(row_of(args.x, row) + column, width);
            apply_vectors<Multiply>(vectors_of(args.deltas, args.rows->slots[row]), column, width, quad);
        }
        store_both<T>(y, row, column, quad, width);
    });
}

KERNEL(scale_input_bf16, 256, VectorArgs) { scale_input<Bf16>(args); }
KERNEL(scale_input_f16, 256, VectorArgs) { scale_input<F16>(args); }
KERNEL(scale_input_f32, 256, VectorArgs) { scale_input<F32>(args); }

constexpr u32 ROTATE_INPUTS = 256;  // that a block of threads rotates at once, where those of one block of the rotation are fewer
constexpr u32 ROTATE_ROWS = 8;      // that read a rotation together, at most

// Which input of a row is input `index` of a block.
DEVICE u32 input_of(const Rotation& rotation, u32 block, u32 index) {
    const u32 half = rotation.size / 2, place = block % rotation.interleaved;
    const u32 group = (block - place) * rotation.size;
    if (index < half) return group + place * half + index;
    return group + rotation.interleaved * half + place * (rotation.size - half) + index - half;
}

// Rows of a group times `count` blocks of a rotation, from `first` on. Every number is one sum over the inputs of its block,
// ascending. All threads of a block take part; what they read of x is there before any of it is written.
template <class T>
DEVICE void rotate_blocks(const RotateArgs& args, const Rotation& rotation, const Group& group, u32 first, u32 count) {
    const u32 size = rotation.size, width = count * size;
    const u32 most = least(ROTATE_ROWS, ROTATE_SHARED / 4 / width);
    f32* inputs = reinterpret_cast<f32*>(shared_bytes());
    for (u32 done = 0; done < group.len; done += most) {
        const u32 rows = least(most, group.len - done);
        const u32* order = args.rows->order + group.first + done;
        for (u32 i = thread_index(); i < rows * width; i += block_threads()) {
            const u32 at = i % width;
            inputs[i] = row_of(args.x, order[i / width])[input_of(rotation, first + at / size, at % size)];
        }
        block_sync();
        for (u32 at = thread_index(); at < width; at += block_threads()) {
            const u32 block = first + at / size, column = at % size;
            const f32* numbers = rotation.blocks + static_cast<u64>(block) * rotation.stride + column;
            const f32* x = inputs + (at - column);
            f32 sums[ROTATE_ROWS] = {};
            for (u32 i = 0; i < size; i++) {
                const f32 number = numbers[i * size];
                for (u32 r = 0; r < ROTATE_ROWS; r++) {
                    if (r < rows) sums[r] = fused(x[r * width + i], number, sums[r]);
                }
            }
            for (u32 r = 0; r < ROTATE_ROWS; r++) {
                if (r < rows) store_both<T>(args.y, order[r], input_of(rotation, block, column), Quad{{sums[r]}}, 1);
            }
        }
        block_sync();
    }
}

// Semantics: `y[r, :] = x[r, :] R` where the row's slot has a rotation number `turn`; at turn 0 all other rows are `x[r, :]`, later
// they are left as they are. In both forms. x and y have the same columns, and may be the same.
// Blocks of 256 threads, ROTATE_SHARED, any grid in x.
template <class T>
DEVICE void rotate_input(const RotateArgs& args) {
    const Rows& y = args.y;
    if (args.turn == 0) {
        each_quad(args.rows->count, written_cols(y), quad_width(y.cols), [&](u32 row, u32 column, u32 width) {
            Quad quad = {};
            if (column < y.cols) {
                if (rotations_of(args.deltas, args.rows->slots[row]).count > 0) return;
                quad = load_quad(row_of(args.x, row) + column, width);
            }
            store_both<T>(y, row, column, quad, width);
        });
    }
    const u32 parts = y.cols / ROTATE_INPUTS + 1;
    for (u32 item = block_index_x(); item < args.rows->groups * parts; item += grid_x()) {
        const Group group = args.rows->group[item / parts];
        const Rotations rotations = rotations_of(args.deltas, static_cast<i32>(group.slot));
        if (args.turn >= rotations.count) continue;
        const Rotation rotation = rotations.first[args.turn];
        const u32 blocks = y.cols / rotation.size;
        const u32 each = rotation.size < ROTATE_INPUTS ? ROTATE_INPUTS / rotation.size : 1;
        for (u32 first = item % parts * each; first < blocks; first += parts * each) {
            rotate_blocks<T>(args, rotation, group, first, least(each, blocks - first));
        }
    }
}

KERNEL(rotate_input_bf16, 256, RotateArgs) { rotate_input<Bf16>(args); }
KERNEL(rotate_input_f16, 256, RotateArgs) { rotate_input<F16>(args); }
KERNEL(rotate_input_f32, 256, RotateArgs) { rotate_input<F32>(args); }
// Semantics: `y[r, c] = Σ_k w[c, k] * x[r, k]` for each column c of the entry w of the row's slot, where it has one; w is row-major and
// begins at 16 bytes. A warp for a column: a lane's products ascending, then `warp_sum`, an order that x's columns alone decide.
KERNEL(head_rows, 256, VectorArgs) {
    const u32 inputs = args.x.cols, outputs = args.y.cols;
    const u32 width = quad_width(inputs);
    for (u32 i = block_index_x() * 8 + warp(); i < args.rows->count * outputs; i += grid_x() * 8) {
        const u32 row = i / outputs, column = i % outputs;
        const Vectors vectors = vectors_of(args.deltas, args.rows->slots[row]);
        if (vectors.count == 0 || column >= vectors.first[0].columns) continue;
        const f32* w = vectors.first[0].values + static_cast<u64>(column) * inputs;
        const f32* x = row_of(args.x, row);
        f32 sum = 0.0f;
        for (u32 k = lane() * width; k < inputs; k += 32 * width) {
            const Quad a = load_quad(w + k, width), b = load_quad(x + k, width);
            for (u32 j = 0; j < width; j++) sum = fused(a.at[j], b.at[j], sum);
        }
        sum = warp_sum(sum);
        if (lane() == 0) row_of(args.y, row)[column] = sum;
    }
}
DEVICE f32 blend(const Blend& blend, f32 x, f32 h) { return blend.of_x * x + blend.of_h * h; }

// Semantics, for each row of a slot with a bottleneck, x and h as they were: `v[r, :] = reads(x, h)` in both forms, `x[r, :] = stream(x, h)`,
// `h[r, :] = branch(x, h) + up_bias`, where a blend is `of_x * x + of_h * h`. x, h and v have the same columns.
template <class T>
DEVICE void blend_rows(const BlendArgs& args) {
    const Rows& v = args.v;
    each_quad(args.rows->count, written_cols(v), quad_width(v.cols), [&](u32 row, u32 column, u32 width) {
        const Bottleneck* entry = bottleneck_of(args.deltas, args.rows->slots[row]);
        if (!entry) return;
        Quad read = {};
        if (column < v.cols) {
            Quad x = load_quad(row_of(args.x, row) + column, width), h = load_quad(row_of(args.h, row) + column, width);
            for (u32 i = 0; i < width; i++) {
                const f32 of_x = x.at[i], of_h = h.at[i];
                read.at[i] = blend(entry->reads, of_x, of_h);
                x.at[i] = blend(entry->stream, of_x, of_h);
                h.at[i] = blend(entry->branch, of_x, of_h) + entry->up_bias[column + i];
            }
            store_quad(row_of(args.x, row) + column, x, width);
            store_quad(row_of(args.h, row) + column, h, width);
        }
        store_both<T>(v, row, column, read, width);
    });
}

KERNEL(blend_rows_bf16, 256, BlendArgs) { blend_rows<Bf16>(args); }
KERNEL(blend_rows_f16, 256, BlendArgs) { blend_rows<F16>(args); }
KERNEL(blend_rows_f32, 256, BlendArgs) { blend_rows<F32>(args); }
