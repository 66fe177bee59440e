// What adapters add to the products of experts, behind the sums of a block.
#pragma once
#include "deltas.cuh"
#include "rows.cuh"

template <class E>
DEVICE f32 number_of(const Piece& piece, u32 index) {
    if constexpr (E::PIECE == 8) return E::widen(static_cast<u16>(piece.word[index / 2] >> (index % 2 * 16)));
    else return f32_of_bits(piece.word[index]);
}

// Σ_j b[column, j] * v[j], one accumulator over ascending ranks. Whatever v has behind the last rank is not looked at.
template <class E>
DEVICE f32 expanded(const Pair& pair, const typename E::Bits* v, u32 column) {
    const Piece* b = static_cast<const Piece*>(pair.b) + static_cast<u64>(column) * (pair.b_stride / E::PIECE);
    const Piece* shrunk = reinterpret_cast<const Piece*>(v);
    f32 sum = 0.0f;
#pragma unroll 1
    for (u32 rank = 0; rank < pair.rank; rank += E::PIECE) {
        const Piece of_b = load_piece(b++), of_v = load_piece(shrunk++);
#pragma unroll
        for (u32 i = 0; i < E::PIECE; i++) {
            if (rank + i < pair.rank) sum = fused(number_of<E>(of_b, i), number_of<E>(of_v, i), sum);
        }
    }
    return sum;
}

// The sum of an output of an expert for one of its pairs, with `scaling * b v` of each entry that has the column added, in their order.
template <class E>
DEVICE f32 with_deltas(const ExpertDeltasArgs& args, const ExpertPairs* added, u32 pair, u32 column, f32 sum) {
    const ExpertPairs own = added[pair];
    const typename E::Bits* v = static_cast<const typename E::Bits*>(args.v) + static_cast<u64>(pair) * args.v_stride;
#pragma unroll 1
    for (u32 i = 0; i < own.count; i++) {
        const Pair& entry = own.first[i];
        const u32 at = column - entry.column;  // wraps below the first column, and is too large then
        if (at < entry.columns) sum = sum + entry.scaling * expanded<E>(entry, v + entry.first_rank, at);
    }
    return sum;
}

// As `added(pair, column, sum)` of a product of experts.
template <class E>
DEVICE auto added_by(const ExpertDeltasArgs& args, const ExpertPairs* added) {
    return [&args, added](u32 pair, u32 column, f32 sum) { return with_deltas<E>(args, added, pair, column, sum); };
}

DEVICE auto nothing_added() {
    return [](u32, u32, f32 sum) { return sum; };
}
