// What is written to the paged KV cache. All kernels: blocks of 256 threads, no shared memory.
#include "cache.cuh"

// Rotates one head in place by its row of the tables: GPT-NeoX halves (Su et al. 2021), numbers behind the halves stay.
DEVICE void rotate(f32* head, const f32* cos, const f32* sin, u32 half) {
    for (u32 i = lane(); i < half; i += 32) {
        const f32 first = head[i];
        const f32 second = head[half + i];
        head[i] = first * cos[i] - second * sin[i];
        head[half + i] = second * cos[i] + first * sin[i];
    }
}

// Semantics: rotate q and k of `qkv` [rows, (heads + 2 kv_heads) * head_dim] in place at each row of the tables, then store k and v at each
// row's place, rounded to T. A warp for every head of a row, any grid in x.
template <class T>
DEVICE void rope_and_cache(const RopeArgs& args) {
    const Step& step = *args.step;
    const u32 dim = args.kv.head_dim;
    const u32 heads = args.heads + 2 * args.kv.kv_heads;
    const u32 warps = block_threads() / 32;
    for (u32 i = block_index_x() * warps + warp(); i < step.rows * heads; i += grid_x() * warps) {
        const u32 row = i / heads;
        const u32 head = i % heads;
        f32* numbers = row_of(args.qkv, row) + static_cast<u64>(head) * dim;
        if (head < args.heads + args.kv.kv_heads) {
            const u64 at = static_cast<u64>(step.rope_rows[row]) * args.half;
            rotate(numbers, args.cos + at, args.sin + at, args.half);
            warp_sync();
        }
        if (head < args.heads) continue;
        const u32 of_kv = head - args.heads;
        const Place place = place_of(step.kv_places[row], args.kv.block_size);
        for (u32 at = lane(); at < dim; at += 32) {
            if (of_kv < args.kv.kv_heads) {
                keys<T>(args.kv, place, of_kv)[at] = T::narrow(numbers[at]);
            } else {
                *value_at<T>(args.kv, place, of_kv - args.kv.kv_heads, at) = T::narrow(numbers[at]);
            }
        }
    }
}

KERNEL(rope_and_cache_bf16, 256, RopeArgs) { rope_and_cache<Bf16>(args); }
KERNEL(rope_and_cache_f16, 256, RopeArgs) { rope_and_cache<F16>(args); }
KERNEL(rope_and_cache_f32, 256, RopeArgs) { rope_and_cache<F32>(args); }

// Semantics: store row i of `k` and of `v`, for each i below `count`, at KV index i of a sequence whose block table begins with `blocks`,
// rounded to T. A thread for every number of k, any grid in x.
template <class T>
DEVICE void write_pages(const WritePagesArgs& args) {
    const u32 dim = args.kv.head_dim;
    each_quad(args.count, args.k.cols, 1, [&](u32 row, u32 column, u32) {
        const Place place = {args.blocks[row / args.kv.block_size], row % args.kv.block_size, args.kv.block_size};
        keys<T>(args.kv, place, column / dim)[column % dim] = T::narrow(row_of(args.k, row)[column]);
        *value_at<T>(args.kv, place, column / dim, column % dim) = T::narrow(row_of(args.v, row)[column]);
    });
}

KERNEL(write_pages_bf16, 256, WritePagesArgs) { write_pages<Bf16>(args); }
KERNEL(write_pages_f16, 256, WritePagesArgs) { write_pages<F16>(args); }
KERNEL(write_pages_f32, 256, WritePagesArgs) { write_pages<F32>(args); }

template <class Word>
DEVICE void copy_words(u8* to, const u8* from, u64 bytes) {
    const u64 step = static_cast<u64>(grid_x()) * block_threads();
    for (u64 i = static_cast<u64>(block_index_x()) * block_threads() + thread_index(); i < bytes / sizeof(Word); i += step) {
        reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
    }
}

// Semantics: copy block `source` to block `target`, all layers, K and V. Grid: any in x, a layer for every y. By 16 bytes where blocks
// and layers are whole pieces, by 4 otherwise.
KERNEL(copy_block, 256, CopyBlockArgs) {
    const bool pieces = args.block_bytes % 16 == 0 && args.layer_bytes % 16 == 0;
    u8* const sides[2] = {args.k, args.v};
    for (u8* side : sides) {
        u8* layer = side + block_index_y() * args.layer_bytes;
        u8* to = layer + args.target * args.block_bytes;
        const u8* from = layer + args.source * args.block_bytes;
        if (pieces) copy_words<Piece>(to, from, args.block_bytes);
        else copy_words<u32>(to, from, args.block_bytes);
    }
}
