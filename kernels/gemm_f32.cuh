// Products in f32: one accumulator of fused multiply-adds an element, inputs ascending, whatever the number of rows.
#pragma once
#include "gemm_rows.cuh"

// Outputs and rows of a tile, and inputs of a stage.
constexpr u32 F32_OUTS = 64;
constexpr u32 F32_ROWS = 64;
constexpr u32 F32_STEP = 16;
constexpr u32 F32_THREADS = 256;
// Numbers from one input of a stage to the next; a multiple of four, so that outputs are read in pieces.
constexpr u32 F32_PITCH = F32_OUTS + 4;
// Outputs side by side that a thread sums, for every sixteenth row.
constexpr u32 F32_PART = 4;
constexpr u32 F32_SPAN = F32_THREADS / (F32_OUTS / F32_PART);
constexpr u32 F32_SHARED = 2 * F32_STEP * F32_PITCH * 4;

static_assert(same(GEMM_F32, {F32_ROWS, F32_OUTS, F32_SHARED}), "blocks are as abi.cuh says");
static_assert(ROWS_OF_GROUP <= F32_ROWS, "a group is one tile");

// Some outputs of an f32 weight. The stride counts numbers.
struct WeightF32 {
    const f32* first;
    u32 stride;
    u32 outs;
};

// One stage of weights and rows to shared memory, each as [input][output or row]; what is absent is zero.
template <class Read>
DEVICE void fill_f32(f32* w_stage, f32* x_stage, const WeightF32& w, u32 rows, u32 k, u32 inputs, const Read& read) {
    const u32 out = thread_index() / 4, piece = thread_index() % 4 * 4;
    const bool held = out < w.outs && k + piece < inputs;
    const Piece numbers = held ? load_piece(w.first + static_cast<u64>(out) * w.stride + k + piece) : zero_piece();
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const f32 number = k + piece + i < inputs ? f32_of_bits(numbers.word[i]) : 0.0f;
        w_stage[(piece + i) * F32_PITCH + out] = number;
    }
    const u32 input = thread_index() % F32_STEP;
    for (u32 row = thread_index() / F32_STEP; row < F32_ROWS; row += F32_THREADS / F32_STEP) {
        x_stage[input * F32_PITCH + row] = row < rows && k + input < inputs ? read(row, k + input) : 0.0f;
    }
}

// write(row, out, Σ_k w[out, k] * read(row, k)) for up to F32_OUTS outputs and F32_ROWS rows, by F32_THREADS threads.
// Shared bytes: F32_SHARED.
template <class Read, class Write>
DEVICE void multiply_f32(const WeightF32& w, u32 rows, u32 inputs, const Read& read, const Write& write) {
    f32* w_stage = reinterpret_cast<f32*>(shared_bytes());
    f32* x_stage = w_stage + F32_STEP * F32_PITCH;
    const u32 out = thread_index() % (F32_OUTS / F32_PART) * F32_PART, row = thread_index() / (F32_OUTS / F32_PART);
    f32 sums[F32_PART][F32_PART] = {};
    for (u32 k = 0; k < inputs; k += F32_STEP) {
        fill_f32(w_stage, x_stage, w, rows, k, inputs, read);
        block_sync();
#pragma unroll
        for (u32 input = 0; input < F32_STEP; input++) {
            const Piece numbers = *reinterpret_cast<const Piece*>(w_stage + input * F32_PITCH + out);
#pragma unroll
            for (u32 part = 0; part < F32_PART; part++) {
                if (part * F32_SPAN < rows) {
                    const f32 x = x_stage[input * F32_PITCH + part * F32_SPAN + row];
#pragma unroll
                    for (u32 i = 0; i < F32_PART; i++) sums[part][i] = fused(f32_of_bits(numbers.word[i]), x, sums[part][i]);
                }
            }
        }
        block_sync();
    }
#pragma unroll
    for (u32 part = 0; part < F32_PART; part++) {
        if (part * F32_SPAN + row < rows) {
#pragma unroll
            for (u32 i = 0; i < F32_PART; i++) {
                if (out + i < w.outs) write(part * F32_SPAN + row, out + i, sums[part][i]);
            }
        }
    }
}
