// The tile of dot products where a unit of a row is broadcast.
#pragma once

#include "kernels/gemm/dot_tile.h"

namespace resfuse {
namespace {

template <class D, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply_dot_tile(const DotTile<D>& tile) {
    const auto begin = tile.begin();
    typename D::Sum acc[Rows][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) acc[i][j] = begin.load(i, j);
    const typename D::Weight* b = tile.b;
    const index_t *offset = tile.offsets, *const end = offset + tile.segments;
    // There is at least one step: where there might be none, GCC would move all sums through memory on the way around.
    do {
        RowWalk<Rows, typename D::Operand> rows(tile.a + *offset, tile.lda);
        index_t left = tile.steps;
        do {
            VecBits weights[Vectors];
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) weights[j] = load_raw<VecBits>(b + j * kVectorFloats * D::kUnit);
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                const VecBits operands = broadcast_unit(rows.row(i));
#pragma GCC unroll 2
                for (int j = 0; j < Vectors; ++j) acc[i][j] = D::add_products(acc[i][j], operands, weights[j]);
            }
            rows.advance(D::kUnit);
            b += kTileCols * D::kUnit;
            left -= D::kUnit;
        } while (left > 0);
    } while (++offset < end);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) tile.end(i, j, acc[i][j]);
}

}  // namespace
}  // namespace resfuse
