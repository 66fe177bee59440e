// A product of a weight with a few rows, the weight read once: what the decode kernels of gemm.cu and shrink of lora.cu share.
//
// The inputs are cut in SLICES slices of 32 * ceil(inputs / 256) each, one for every warp of the block. A slice's sum is one
// accumulator over ascending inputs, and the sums of the slices are added in ascending order: nothing else decides the bits of
// an element, so they are those of gemm_tiles.cuh too.
#pragma once
#include "device.cuh"

constexpr u32 SLICES = 8;
constexpr u32 WARP = 32;
// Outputs of a tile of an mma, and rows of one.
constexpr u32 TILE_OUTS = 16;
constexpr u32 TILE_ROWS = 8;
// Pieces of a row that one mma pair takes: 32 inputs.
constexpr u32 PIECES_OF_STEP = 4;
// Numbers from one row of partial sums to the next: the lanes of a warp, four by eight, meet no bank twice.
constexpr u32 PARTIAL_PITCH = 20;

// Rows of a buffer: `order[first]` and on, or `first` and on where there is no order.
struct RowList {
    const u32* order;
    u32 first;
    u32 count;
};

DEVICE u32 row_of(const RowList& rows, u32 index) {
    return rows.order != nullptr ? rows.order[rows.first + index] : rows.first + index;
}

// Some rows of a weight, at least one, and the column of the result that the first of them makes. Strides are in pieces.
struct Weight {
    const Piece* first;
    u32 stride;
    u32 outs;
    u32 column;
};

// The inputs that are multiplied: `pieces` of every row.
struct Inputs {
    const Piece* first;
    u32 stride;
    u32 pieces;
};

DEVICE u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

template <class E>
DEVICE Inputs inputs_of(const Rows& x) {
    return Inputs{static_cast<const Piece*>(x.input), x.input_stride / E::PIECE, ceil_div(x.cols, E::PIECE)};
}

// 32-input steps in one slice of so many pieces.
DEVICE u32 steps_of_slice(u32 pieces) { return ceil_div(ceil_div(pieces, PIECES_OF_STEP), SLICES); }

DEVICE constexpr bool same(const GemmBlock& a, const GemmBlock& b) { return a.rows == b.rows && a.outs == b.outs && a.shared == b.shared; }

DEVICE Piece zero_piece() { return Piece{{0, 0, 0, 0}}; }

// d += both halves of 32 inputs: words 0 and 1 of the pieces, then words 2 and 3.
template <class E>
DEVICE void multiply_step(f32 (&d)[4], const Piece& low, const Piece& high, const Piece& x) {
    const u32 a[4] = {low.word[0], high.word[0], low.word[1], high.word[1]};
    const u32 b[2] = {x.word[0], x.word[1]};
    E::mma(d, a, b);
    const u32 a_next[4] = {low.word[2], high.word[2], low.word[3], high.word[3]};
    const u32 b_next[2] = {x.word[2], x.word[3]};
    E::mma(d, a_next, b_next);
}

// Where a thread sits: its warp, and the row and the piece of a row that its lane reads.
struct Seat {
    u32 thread, warp, g, t;
};

DEVICE Seat seat() {
    const u32 thread = thread_index();
    return Seat{thread, thread / WARP, thread % WARP / 4, thread % 4};
}

// One slice. Pieces of DEPTH steps are on their way to a ring in shared memory of which every thread reads what it copied itself, so
// that no barrier is needed: waiting for the oldest of several groups of copies is exact, while a wait for one of several loads to
// registers is a wait for all of them.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH>
struct Slice {
    Seat seat;
    const Piece* weights;
    u32 weights_at[TILES][2];
    const Piece* x;
    u32 x_at[EIGHTS];
    u32 x_valid;
    u32 pieces;
    Piece* ring;
    f32 sums[TILES][EIGHTS][4];

    static constexpr u32 PIECES = TILES * 2 + EIGHTS;  // of a thread in a step
};

// The rows of the weight and of x that this lane reads. Rows beyond the last read the last again: their results are not kept.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH>
DEVICE void begin_slice(Slice<E, TILES, EIGHTS, DEPTH>& slice, const Weight& w, const Inputs& x, const RowList& rows) {
    slice.seat = seat();
    const u32 g = slice.seat.g;
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
        slice.weights_at[tile][0] = least(tile * TILE_OUTS + g, w.outs - 1) * w.stride;
        slice.weights_at[tile][1] = least(tile * TILE_OUTS + g + 8, w.outs - 1) * w.stride;
    }
    slice.weights = w.first;
    slice.x = x.first;
    slice.x_valid = 0;
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++) {
        const u32 index = eight * TILE_ROWS + g;
        slice.x_valid |= (index < rows.count ? 1u : 0u) << eight;
        slice.x_at[eight] = row_of(rows, least(index, rows.count - 1)) * x.stride;
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) slice.sums[tile][eight][i] = 0.0f;
        }
    }
    slice.pieces = x.pieces;
    slice.ring = reinterpret_cast<Piece*>(shared_bytes()) + slice.seat.thread;
}

// Sends for one step's pieces; none beyond the last step.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH>
DEVICE void send_step(const Slice<E, TILES, EIGHTS, DEPTH>& slice, Piece* place, u32 step, u32 end) {
    if (step < end) {
        const u32 piece = step * PIECES_OF_STEP + slice.seat.t;
        const bool valid = piece < slice.pieces;
        const u32 at = valid ? piece : 0;
#pragma unroll
        for (u32 i = 0; i < TILES * 2; i++) {
            copy_async_16(place + i * (SLICES * WARP), slice.weights + (slice.weights_at[i / 2][i % 2] + at), valid);
        }
#pragma unroll
        for (u32 eight = 0; eight < EIGHTS; eight++) {
            const bool row_valid = (slice.x_valid >> eight & 1) != 0;
            copy_async_16(place + (TILES * 2 + eight) * (SLICES * WARP), slice.x + (slice.x_at[eight] + at), valid && row_valid);
        }
    }
    copy_async_commit();
}

template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH>
DEVICE void multiply_place(Slice<E, TILES, EIGHTS, DEPTH>& slice, const Piece* place) {
    Piece x[EIGHTS];
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++) x[eight] = place[(TILES * 2 + eight) * (SLICES * WARP)];
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
        const Piece low = place[tile * 2 * (SLICES * WARP)], high = place[(tile * 2 + 1) * (SLICES * WARP)];
#pragma unroll
        for (u32 eight = 0; eight < EIGHTS; eight++) multiply_step<E>(slice.sums[tile][eight], low, high, x[eight]);
    }
}

template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH>
DEVICE void sum_slice(Slice<E, TILES, EIGHTS, DEPTH>& slice) {
    constexpr u32 PLACE = Slice<E, TILES, EIGHTS, DEPTH>::PIECES * SLICES * WARP;
    const u32 all = ceil_div(slice.pieces, PIECES_OF_STEP);
    const u32 steps = steps_of_slice(slice.pieces);
    const u32 first = least(slice.seat.warp * steps, all);
    const u32 end = least(first + steps, all);
#pragma unroll 1
    for (u32 place = 0; place < DEPTH; place++) send_step(slice, slice.ring + place * PLACE, first + place, end);
    Piece* place = slice.ring;
#pragma unroll 1
    for (u32 step = first; step < end; step++) {
        copy_async_wait<static_cast<int>(DEPTH) - 1>();
        multiply_place(slice, place);
        send_step(slice, place, step + DEPTH, end);
        place = place == slice.ring + (DEPTH - 1) * PLACE ? slice.ring : place + PLACE;
    }
    copy_async_wait<0>();
}

// Numbers of a tile's partial sums.
template <u32 EIGHTS>
DEVICE constexpr u32 partial_numbers() { return SLICES * EIGHTS * TILE_ROWS * PARTIAL_PITCH; }

// This warp's slice of a tile, to shared memory.
template <u32 EIGHTS>
DEVICE void put_partial(const Seat& seat, const f32 (&sums)[EIGHTS][4], f32* partial) {
#pragma unroll
    for (u32 eight = 0; eight < EIGHTS; eight++) {
        f32* row = partial + (seat.warp * EIGHTS * TILE_ROWS + eight * TILE_ROWS + 2 * seat.t) * PARTIAL_PITCH + seat.g;
        row[0] = sums[eight][0];
        row[PARTIAL_PITCH] = sums[eight][1];
        row[8] = sums[eight][2];
        row[PARTIAL_PITCH + 8] = sums[eight][3];
    }
}

// The slices of one output of a row, added in ascending order.
template <u32 EIGHTS>
DEVICE f32 sum_partial(const f32* partial, u32 index, u32 out) {
    f32 sum = 0.0f;
#pragma unroll
    for (u32 slice = 0; slice < SLICES; slice++) sum += partial[(slice * EIGHTS * TILE_ROWS + index) * PARTIAL_PITCH + out];
    return sum;
}

// Calls `write(row, out, sum)` for the sums of `outs` outputs of `rows`.
template <u32 EIGHTS, class Write>
DEVICE void store_tile(const Seat& seat, const f32 (&sums)[EIGHTS][4], u32 outs, const RowList& rows, const Write& write) {
    f32* partial = reinterpret_cast<f32*>(shared_bytes());
    put_partial(seat, sums, partial);
    block_sync();
    for (u32 i = seat.thread; i < TILE_OUTS * least(rows.count, EIGHTS * TILE_ROWS); i += SLICES * WARP) {
        const u32 out = i % TILE_OUTS, index = i / TILE_OUTS;
        const f32 sum = sum_partial<EIGHTS>(partial, index, out);
        if (out < outs) write(row_of(rows, index), out, sum);
    }
    block_sync();
}

// What `multiply_rows` takes: shared memory has its ring, then the partial sums of a tile.
template <u32 TILES, u32 EIGHTS, u32 DEPTH>
struct RowsBlock {
    static constexpr u32 RING = SLICES * WARP * DEPTH * (2 * TILES + EIGHTS) * 16;
    static constexpr u32 PARTIAL = SLICES * EIGHTS * TILE_ROWS * PARTIAL_PITCH * 4;
    static constexpr GemmBlock BLOCK = {EIGHTS * TILE_ROWS, TILES * TILE_OUTS, RING > PARTIAL ? RING : PARTIAL};
};

// write(r, c, Σ_k x[r, k] * w[c, k]) for up to 8 * EIGHTS rows and 16 * TILES outputs, by all SLICES warps of the block.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH, class Write>
DEVICE void multiply_rows(const Weight& w, const Inputs& x, const RowList& rows, const Write& write) {
    Slice<E, TILES, EIGHTS, DEPTH> slice;
    begin_slice(slice, w, x, rows);
    sum_slice(slice);
    block_sync();
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
        const u32 done = tile * TILE_OUTS;
        const auto write_tile = [&](u32 row, u32 out, f32 sum) { write(row, done + out, sum); };
        store_tile<EIGHTS>(slice.seat, slice.sums[tile], w.outs > done ? w.outs - done : 0, rows, write_tile);
    }
}

// As above to `y[r, column + c]`.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH>
DEVICE void multiply_rows(const Weight& w, const Inputs& x, const RowList& rows, f32* y, u32 y_stride) {
    multiply_rows<E, TILES, EIGHTS, DEPTH>(w, x, rows, [&](u32 row, u32 out, f32 sum) { y[static_cast<u64>(row) * y_stride + w.column + out] = sum; });
}
