// A product of a weight with a few rows, the weight read once: what the decode kernels of gemm.cu and shrink of lora.cu share.
//
// The inputs are cut in SLICES slices of 64 * ceil(inputs / 512) each, one for every warp of the block. A slice's sum is one
// accumulator over ascending inputs, 16 at a time, and the sums of the slices are added in ascending order: nothing else decides the
// bits of an element, so they are those of gemm_tiles.cuh too.
#pragma once
#include "device.cuh"

constexpr u32 SLICES = 8;
constexpr u32 WARP = 32;
// Outputs of a tile of an mma, and rows of one.
constexpr u32 TILE_OUTS = 16;
constexpr u32 TILE_ROWS = 8;
// Pieces of a row that a step takes at most: 64 inputs, which are a line of the cache. Slices are whole steps of so many.
constexpr u32 PIECES_OF_LINE = 8;
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

// Lines in one slice of so many pieces.
DEVICE u32 lines_of_slice(u32 pieces) { return ceil_div(ceil_div(pieces, PIECES_OF_LINE), SLICES); }

DEVICE Piece zero_piece() { return Piece{{0, 0, 0, 0}}; }

DEVICE constexpr bool same(const GemmBlock& a, const GemmBlock& b) { return a.rows == b.rows && a.outs == b.outs && a.shared == b.shared; }

// Where a thread sits: its warp, and the row and the couple of outputs that its lane has of a tile's sums.
struct Seat {
    u32 thread, warp, g, t;
};

DEVICE Seat seat() {
    const u32 thread = thread_index();
    return Seat{thread, thread / WARP, thread % WARP / 4, thread % 4};
}

// --- one step of rows in shared memory --------------------------------------------------------------------------------
// A row has its WIDTH pieces of a step, 8 or 4, side by side, in an order of its own: the eight lanes that store together, and the eight that load the
// same piece of eight rows, meet no bank twice.

template <u32 WIDTH>
DEVICE u32 piece_at(u32 row, u32 piece) {
    static_assert(WIDTH == PIECES_OF_LINE || WIDTH == PIECES_OF_LINE / 2, "a line or half of one");
    return row * WIDTH + (piece ^ (WIDTH == PIECES_OF_LINE ? row % 8 : row / 2 % 4));
}

// Operand A of a product: 16 rows from `rows` on, which begin at a multiple of eight.
template <u32 WIDTH>
DEVICE void load_outs(u32 (&a)[4], const Piece* rows, u32 product) {
    const u32 tile = lane() / 8;  // upper rows, lower rows, and both with the next piece
    load_tiles(a, rows + piece_at<WIDTH>(tile % 2 * 8 + lane() % 8, product * 2 + tile / 2));
}

// Operands B of two products, one behind the other: eight rows from `rows` on.
template <u32 WIDTH>
DEVICE void load_rows(u32 (&b)[4], const Piece* rows, u32 product) {
    load_tiles(b, rows + piece_at<WIDTH>(lane() % 8, product * 2 + lane() / 8));
}

// sums += w x for a step of tiles of outputs by eights of rows. All sums get a product of 16 inputs before any gets the next: none waits for the one
// before it.
template <class E, u32 WIDTH, u32 TILES, u32 EIGHTS>
DEVICE void multiply_step(f32 (&sums)[TILES][EIGHTS][4], const Piece* w, const Piece* x) {
#pragma unroll
    for (u32 product = 0; product < WIDTH / 2; product += 2) {
        u32 rows[EIGHTS][4];
#pragma unroll
        for (u32 eight = 0; eight < EIGHTS; eight++) load_rows<WIDTH>(rows[eight], x + eight * TILE_ROWS * WIDTH, product);
#pragma unroll
        for (u32 next = 0; next < 2; next++) {
            u32 outs[TILES][4];
#pragma unroll
            for (u32 tile = 0; tile < TILES; tile++) load_outs<WIDTH>(outs[tile], w + tile * TILE_OUTS * WIDTH, product + next);
#pragma unroll
            for (u32 i = 0; i < TILES * EIGHTS; i++) {
                const u32 x_of[2] = {rows[i % EIGHTS][next * 2], rows[i % EIGHTS][next * 2 + 1]};
                E::mma(sums[i / EIGHTS][i % EIGHTS], outs[i / EIGHTS], x_of);
            }
        }
    }
}

// --- a slice ----------------------------------------------------------------------------------------------------------

// One slice. Pieces of DEPTH steps are on their way to a ring in shared memory that is the warp's own, so that no barrier of the block is needed:
// waiting for the oldest of several groups of copies is exact, while a wait for one of several loads to registers is a wait for all of them.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
struct Slice {
    // Rows that are copied together, each by WIDTH lanes; copies of a tile and of an eight; pieces of a place of the ring.
    static constexpr u32 AT_ONCE = WARP / WIDTH;
    static constexpr u32 OF_TILE = TILE_OUTS / AT_ONCE;
    static constexpr u32 OF_EIGHT = TILE_ROWS / AT_ONCE;
    static constexpr u32 PIECES = (TILES * TILE_OUTS + EIGHTS * TILE_ROWS) * WIDTH;

    Seat seat;
    const Piece* weights;
    u32 stride;
    u32 tile_at[TILES];  // where a tile's rows begin
    u32 outs[TILES];     // rows that it has
    const Piece* x;
    u32 x_at[EIGHTS * OF_EIGHT];
    u32 x_valid;
    u32 pieces;
    Piece* ring;
    f32 sums[TILES][EIGHTS][4];
};

template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
DEVICE void begin_slice(Slice<E, TILES, EIGHTS, DEPTH, WIDTH>& slice, const Weight& w, const Inputs& x, const RowList& rows) {
    slice.seat = seat();
    slice.weights = w.first;
    slice.stride = w.stride;
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
        slice.tile_at[tile] = tile * TILE_OUTS * w.stride;
        slice.outs[tile] = w.outs > tile * TILE_OUTS ? least(w.outs - tile * TILE_OUTS, TILE_OUTS) : 0;
    }
    slice.x = x.first;
    slice.x_valid = 0;
#pragma unroll
    for (u32 i = 0; i < EIGHTS * slice.OF_EIGHT; i++) {
        const u32 index = i * slice.AT_ONCE + lane() / WIDTH;
        slice.x_valid |= (index < rows.count ? 1u : 0u) << i;
        slice.x_at[i] = row_of(rows, least(index, rows.count - 1)) * x.stride;
    }
#pragma unroll
    for (u32 i = 0; i < TILES * EIGHTS * 4; i++) slice.sums[i / 4 / EIGHTS][i / 4 % EIGHTS][i % 4] = 0.0f;
    slice.pieces = x.pieces;
    slice.ring = reinterpret_cast<Piece*>(shared_bytes()) + slice.seat.warp * DEPTH * slice.PIECES;
}

// Sends for one step's pieces; none behind the last step. Rows that are not there are zeros.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
DEVICE void send_step(const Slice<E, TILES, EIGHTS, DEPTH, WIDTH>& slice, Piece* place, u32 step, u32 end) {
    if (step < end) {
        const u32 row = lane() / WIDTH, own = lane() % WIDTH, piece = step * WIDTH + own;
        const bool inside = piece < slice.pieces;
        const u32 at = inside ? piece : 0;
#pragma unroll
        for (u32 i = 0; i < TILES * slice.OF_TILE; i++) {
            const u32 tile = i / slice.OF_TILE, out = i % slice.OF_TILE * slice.AT_ONCE + row;
            const bool valid = inside && out < slice.outs[tile];
            const u32 from = valid ? slice.tile_at[tile] + out * slice.stride + at : 0;
            copy_async_16(place + piece_at<WIDTH>(i * slice.AT_ONCE + row, own), slice.weights + from, valid);
        }
#pragma unroll
        for (u32 i = 0; i < EIGHTS * slice.OF_EIGHT; i++) {
            const bool valid = inside && (slice.x_valid >> i & 1) != 0;
            copy_async_16(place + piece_at<WIDTH>(TILES * TILE_OUTS + i * slice.AT_ONCE + row, own), slice.x + (slice.x_at[i] + at), valid);
        }
    }
    copy_async_commit();
}

template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
DEVICE void sum_slice(Slice<E, TILES, EIGHTS, DEPTH, WIDTH>& slice) {
    const u32 all = ceil_div(slice.pieces, WIDTH);
    const u32 steps = lines_of_slice(slice.pieces) * (PIECES_OF_LINE / WIDTH);
    const u32 first = least(slice.seat.warp * steps, all);
    const u32 end = least(first + steps, all);
#pragma unroll 1
    for (u32 place = 0; place < DEPTH; place++) send_step(slice, slice.ring + place * slice.PIECES, first + place, end);
    Piece* place = slice.ring;
#pragma unroll 1
    for (u32 step = first; step < end; step++) {
        copy_async_wait<static_cast<int>(DEPTH) - 1>();
        warp_sync();  // what other lanes have copied is there
        multiply_step<E, WIDTH>(slice.sums, place, place + TILES * TILE_OUTS * WIDTH);
        warp_sync();  // and has been read
        send_step(slice, place, step + DEPTH, end);
        place = place == slice.ring + (DEPTH - 1) * slice.PIECES ? slice.ring : place + slice.PIECES;
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

// Calls `write(row, out, sum)` for the sums of `outs` outputs of `rows`, through the block's `partial`.
template <u32 EIGHTS, class Write>
DEVICE void store_tile(const Seat& seat, const f32 (&sums)[EIGHTS][4], f32* partial, u32 outs, const RowList& rows, const Write& write) {
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
template <u32 TILES, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
struct RowsBlock {
    static constexpr u32 RING = SLICES * DEPTH * (TILES * TILE_OUTS + EIGHTS * TILE_ROWS) * WIDTH * 16;
    static constexpr u32 PARTIAL = SLICES * EIGHTS * TILE_ROWS * PARTIAL_PITCH * 4;
    static constexpr GemmBlock BLOCK = {EIGHTS * TILE_ROWS, TILES * TILE_OUTS, RING > PARTIAL ? RING : PARTIAL};
};

// write(r, c, Σ_k x[r, k] * w[c, k]) for up to 8 * EIGHTS rows and 16 * TILES outputs, by all SLICES warps of the block.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH, u32 WIDTH, class Write>
DEVICE void multiply_rows(const Weight& w, const Inputs& x, const RowList& rows, const Write& write) {
    Slice<E, TILES, EIGHTS, DEPTH, WIDTH> slice;
    begin_slice(slice, w, x, rows);
    sum_slice(slice);
    block_sync();
    f32* partial = reinterpret_cast<f32*>(shared_bytes());
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
        const u32 done = tile * TILE_OUTS;
        const auto write_tile = [&](u32 row, u32 out, f32 sum) { write(row, done + out, sum); };
        store_tile<EIGHTS>(slice.seat, slice.sums[tile], partial, w.outs > done ? w.outs - done : 0, rows, write_tile);
    }
}

// As above to `y[r, column + c]`.
template <class E, u32 TILES, u32 EIGHTS, u32 DEPTH, u32 WIDTH>
DEVICE void multiply_rows(const Weight& w, const Inputs& x, const RowList& rows, f32* y, u32 y_stride) {
    multiply_rows<E, TILES, EIGHTS, DEPTH, WIDTH>(w, x, rows, [&](u32 row, u32 out, f32 sum) { y[static_cast<u64>(row) * y_stride + w.column + out] = sum; });
}
