// The tile of dot products of NEON: lane by lane, or matrix by matrix where units have as many bytes.
#pragma once

#include "kernels/gemm/dot_tile.h"
#include "kernels/gemm/lane_dot_tile.h"
#include "kernels/gemm/matrix_tile.h"

namespace resfuse {
namespace {

template <class D, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply_dot_tile(const DotTile<D>& tile) {
    // What is there already, or the same for all rows.
    static constexpr typename D::Lane kNothing[kTileCols] = {};
    const typename D::Lane* const begin = tile.accumulate ? tile.sums : tile.offset ? tile.offset : kNothing;
    const index_t pitch = tile.accumulate ? kTileCols : 0;
    using Sum = typename D::Sum;
    const auto load_sum = [&](int i, int j) { return load_raw<Sum>(begin + i * pitch + j * kVectorFloats); };
    const auto store_sum = [&](int i, int j, Sum sum) {
        store_vector(tile.sums + i * kTileCols + j * kVectorFloats, sum);
    };
    const typename D::Weight* b = tile.b;
    if constexpr (D::kUnit * sizeof(typename D::Weight) == kMatrixBytes) {
        constexpr int kPairs = (Rows + 1) / 2;
        PairSums<D, Vectors> acc[kPairs];
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) {
                const Sum x = load_sum(2 * p, j), y = load_sum(2 * p + 1 < Rows ? 2 * p + 1 : 2 * p, j);
                acc[p][2 * j] = first_halves(x, y);
                acc[p][2 * j + 1] = second_halves(x, y);
            }
        for (index_t s = 0; s < tile.segments; ++s)
            b = add_matrix_segment<D, Rows, kPairs, Vectors>({tile.a + tile.offsets[s], tile.lda}, tile.steps, b, acc);
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) {
                store_sum(2 * p, j, first_halves(acc[p][2 * j], acc[p][2 * j + 1]));
                if (2 * p + 1 < Rows) store_sum(2 * p + 1, j, second_halves(acc[p][2 * j], acc[p][2 * j + 1]));
            }
    } else {
        Sum acc[Rows][Vectors];
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) acc[i][j] = load_sum(i, j);
        for (index_t s = 0; s < tile.segments; ++s)
            b = add_lane_segment<D, Rows, Vectors>({tile.a + tile.offsets[s], tile.lda}, tile.steps, b, acc);
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) store_sum(i, j, acc[i][j]);
    }
}

}  // namespace
}  // namespace resfuse
