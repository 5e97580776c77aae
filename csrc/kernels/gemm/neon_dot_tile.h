// The tile of dot products of NEON: lane by lane, or matrix by matrix where units have as many bytes.
#pragma once

#include "kernels/gemm/dot_tile.h"
#include "kernels/gemm/lane_dot_tile.h"
#include "kernels/gemm/matrix_tile.h"

namespace resfuse {
namespace {

template <class D, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply_dot_tile(const DotTile<D>& tile) {
    using Sum = typename D::Sum;
    const auto begin = tile.begin();
    const typename D::Weight* b = tile.b;
    if constexpr (D::kUnit * sizeof(typename D::Weight) == kMatrixBytes) {
        constexpr int kPairs = (Rows + 1) / 2;
        PairSums<D, Vectors> acc[kPairs];
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) {
                const Sum x = begin.load(2 * p, j), y = begin.load(2 * p + 1 < Rows ? 2 * p + 1 : 2 * p, j);
                acc[p][2 * j] = first_halves(x, y);
                acc[p][2 * j + 1] = second_halves(x, y);
            }
        for (index_t s = 0; s < tile.segments; ++s)
            b = add_matrix_segment<D, Rows, kPairs, Vectors>({tile.a + tile.offsets[s], tile.lda}, tile.steps, b, acc);
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) {
                tile.end(2 * p, j, first_halves(acc[p][2 * j], acc[p][2 * j + 1]));
                if (2 * p + 1 < Rows) tile.end(2 * p + 1, j, second_halves(acc[p][2 * j], acc[p][2 * j + 1]));
            }
    } else {
        Sum acc[Rows][Vectors];
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) acc[i][j] = begin.load(i, j);
        for (index_t s = 0; s < tile.segments; ++s)
            b = add_lane_segment<D, Rows, Vectors>({tile.a + tile.offsets[s], tile.lda}, tile.steps, b, acc);
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) tile.end(i, j, acc[i][j]);
    }
}

}  // namespace
}  // namespace resfuse
