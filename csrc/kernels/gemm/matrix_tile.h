// The tile of dot products (dot_tile.h) of instructions that multiply two rows by two columns of 8 bytes each (Arm's
// MMLA of i8mm and bf16): 2x2 sums in a vector, twice as many products as other instructions of that length.
//
// Two rows' 16 bytes come in as two vectors, of which one shuffle each makes the pair's first and second unit. Weights
// are packed as columns' pairs. An odd last row is its own pair.
#pragma once

#include <arm_neon.h>

#include "kernels/gemm/tile.h"

namespace resfuse {
namespace {

constexpr index_t kMatrixBytes = 8;  // of a row of an operand

// The first halves of two vectors, and their second ones.
template <class V>
[[gnu::always_inline]] inline V first_halves(V a, V b) {
    return (V)vzip1q_u64((uint64x2_t)a, (uint64x2_t)b);
}
template <class V>
[[gnu::always_inline]] inline V second_halves(V a, V b) {
    return (V)vzip2q_u64((uint64x2_t)a, (uint64x2_t)b);
}

// Sums of rows `2 * p` and `2 * p + 1` by pairs of columns.
template <class D, int Vectors>
using PairSums = typename D::Sum[2 * Vectors];

template <class D, int Pairs, int Vectors>
[[gnu::always_inline]] inline void add_matrix_unit(const VecBits (&a)[Pairs], const typename D::Weight* b,
                                                   PairSums<D, Vectors> (&acc)[Pairs]) {
#pragma GCC unroll 4
    for (int j = 0; j < 2 * Vectors; ++j) {
        const VecBits weights = load_raw<VecBits>(b + 2 * j * D::kUnit);
#pragma GCC unroll 4
        for (int p = 0; p < Pairs; ++p) acc[p][j] = D::add_products(acc[p][j], a[p], weights);
    }
}

// acc += rows of A times one segment of B, whose end it returns.
template <class D, int Rows, int Pairs, int Vectors>
[[gnu::always_inline]] inline const typename D::Weight* add_matrix_segment(RowWalk<Rows, typename D::Operand> rows,
                                                                           index_t steps, const typename D::Weight* b,
                                                                           PairSums<D, Vectors> (&acc)[Pairs]) {
    constexpr index_t kUnitWeights = D::kUnit * kTileCols;
    const auto second = [](int p) { return 2 * p + 1 < Rows ? 2 * p + 1 : 2 * p; };
    for (; steps >= 2 * D::kUnit; steps -= 2 * D::kUnit) {
        VecBits a[2][Pairs];
#pragma GCC unroll 4
        for (int p = 0; p < Pairs; ++p) {
            const VecBits x = load_raw<VecBits>(rows.row(2 * p)), y = load_raw<VecBits>(rows.row(second(p)));
            a[0][p] = first_halves(x, y);
            a[1][p] = second_halves(x, y);
        }
        add_matrix_unit<D, Pairs, Vectors>(a[0], b, acc);
        add_matrix_unit<D, Pairs, Vectors>(a[1], b + kUnitWeights, acc);
        rows.advance(2 * D::kUnit);
        b += 2 * kUnitWeights;
    }
    if (steps > 0) {
        using Half = VectorOf<std::uint32_t, kMatrixBytes>::type;
        VecBits a[Pairs];
#pragma GCC unroll 4
        for (int p = 0; p < Pairs; ++p)
            a[p] = (VecBits)vcombine_u32((uint32x2_t)load_raw<Half>(rows.row(2 * p)),
                                         (uint32x2_t)load_raw<Half>(rows.row(second(p))));
        add_matrix_unit<D, Pairs, Vectors>(a, b, acc);
        b += kUnitWeights;
    }
    return b;
}

}  // namespace
}  // namespace resfuse
