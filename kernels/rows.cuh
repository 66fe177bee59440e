// What kernels over rows share: four numbers at a time, the input form of a row, and the entries of a row's slot.
#pragma once
#include "deltas.cuh"

struct Quad {
    f32 at[4];
};

struct alignas(8) HalfPiece {
    u32 word[2];
};

// How many numbers a thread takes at a time: rows of 4n numbers are read and written 16 bytes at a time, others one by one.
DEVICE u32 quad_width(u32 cols) { return cols % 4 == 0 ? 4 : 1; }

DEVICE Quad load_quad(const f32* from, u32 width) {
    Quad quad = {};
    if (width == 4) {
        const Piece piece = *reinterpret_cast<const Piece*>(from);
        for (u32 i = 0; i < 4; i++) quad.at[i] = f32_of_bits(piece.word[i]);
    } else {
        quad.at[0] = from[0];
    }
    return quad;
}

DEVICE void store_quad(f32* to, const Quad& quad, u32 width) {
    if (width == 4) {
        Piece piece;
        for (u32 i = 0; i < 4; i++) piece.word[i] = bits_of(quad.at[i]);
        store_piece(to, piece);
    } else {
        to[0] = quad.at[0];
    }
}

// Four numbers of a type of 16 bits are half a piece, four of f32 a piece.
template <class T>
DEVICE Quad load_narrow(const typename T::Bits* from, u32 width) {
    Quad quad = {};
    if (width != 4) {
        quad.at[0] = T::widen(from[0]);
    } else if constexpr (T::PIECE == 8) {
        const HalfPiece half = *reinterpret_cast<const HalfPiece*>(from);
        for (u32 i = 0; i < 4; i++) quad.at[i] = T::widen(static_cast<u16>(half.word[i / 2] >> (i % 2 * 16)));
    } else {
        quad = load_quad(from, 4);
    }
    return quad;
}

template <class T>
DEVICE void store_narrow(typename T::Bits* to, const Quad& quad, u32 width) {
    if (width != 4) {
        to[0] = T::narrow(quad.at[0]);
    } else if constexpr (T::PIECE == 8) {
        HalfPiece half;
        for (u32 i = 0; i < 2; i++) half.word[i] = T::pack(quad.at[2 * i], quad.at[2 * i + 1]);
        *reinterpret_cast<HalfPiece*>(to) = half;
    } else {
        store_quad(to, quad, 4);
    }
}

DEVICE f32* row_of(const Rows& rows, u32 row) { return rows.values + static_cast<u64>(row) * rows.cols; }

// Columns of a row that a producer of both forms goes through: those beyond `cols` are zeros of the input form.
DEVICE u32 written_cols(const Rows& y) { return y.input && y.input_stride > y.cols ? y.input_stride : y.cols; }

// Writes a quad of a row in both forms.
template <class T>
DEVICE void store_both(const Rows& y, u32 row, u32 column, const Quad& quad, u32 width) {
    if (column < y.cols) store_quad(row_of(y, row) + column, quad, width);
    if (y.input) {
        typename T::Bits* input = static_cast<typename T::Bits*>(y.input) + static_cast<u64>(row) * y.input_stride;
        store_narrow<T>(input + column, quad, width);
    }
}

// The activation between gate and up: 0 silu, 1 gelu tanh, 2 gelu erf.
DEVICE f32 activate(u32 activation, f32 x) {
    if (activation == 0) return x / (1.0f + exp_of(-x));
    if (activation == 1) {
        const f32 inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
        return 0.5f * x * (1.0f + tanh_of(inner));
    }
    return 0.5f * x * (1.0f + erf_of(x * 0.7071067811865476f));
}

// What stands between the matrices of a bottleneck: 0 to 2 as above, 3 nothing, 4 relu, 5 relu6, 6 relu squared, 7 leaky relu,
// 8 sigmoid, 9 tanh, 10 mish, 11 quick gelu, 12 clipped gelu, 13 laplace. What is no number stays none.
DEVICE f32 bend(u32 non_linearity, f32 slope, f32 x) {
    const f32 positive = x < 0.0f ? 0.0f : x;
    switch (non_linearity) {
        case 3: return x;
        case 4: return positive;
        case 5: return x > 6.0f ? 6.0f : positive;
        case 6: return positive * positive;
        case 7: return x > 0.0f ? x : slope * x;
        case 8: return 1.0f / (1.0f + exp_of(-x));
        case 9: return tanh_of(x);
        case 10: {
            // x tanh(ln(1 + e^x)) is x n / (n + 2) with n = e^x (e^x + 2), and from 20 on x.
            const f32 power = exp_of(x > 20.0f ? 20.0f : x), n = power * (power + 2.0f);
            return x * (n / (n + 2.0f));
        }
        case 11: return x * (1.0f / (1.0f + exp_of(-1.702f * x)));
        case 12: {
            const f32 gelu = activate(2, x);
            return gelu > 10.0f ? 10.0f : gelu;  // nowhere below -1
        }
        case 13: return 0.5f * (1.0f + erf_of((x - 0.707107f) / 0.39894257f));
        default: return activate(non_linearity, x);
    }
}

// Calls `visit(row, column, width)` for every quad of `rows` rows, the threads of the grid side by side. Rows of any width keep
// all threads busy, and any grid covers them.
template <class Visit>
DEVICE void each_quad(u32 rows, u32 cols, u32 width, Visit visit) {
    const u32 of_row = cols / width;
    const u32 quads = rows * of_row;
    for (u32 i = block_index_x() * block_threads() + thread_index(); i < quads; i += grid_x() * block_threads()) {
        visit(i / of_row, i % of_row * width, width);
    }
}
