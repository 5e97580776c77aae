// The register tile of instructions that multiply vectors: an element of A is broadcast, its row's next factor.
#pragma once

#include "kernels/gemm/tile.h"

namespace resfuse {
namespace {

// acc = rows of A times columns of B, over `segments` segments of `steps` steps that lie `offsets` from a.
template <bool More, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply(const float* a, index_t lda, const index_t* offsets, index_t segments,
                                            index_t steps, const float* b, const GemmAhead& ahead,
                                            Accumulators<Rows, Vectors>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Vectors; ++j) acc[i][j] = zero();
    const float* next_b = ahead.b;
    const index_t b_step = ahead.b_step;
    const index_t second_line = b_step > kLineFloats ? kLineFloats : 0;  // of the step, if this tile is alone
    for (const index_t* const end = offsets + segments; offsets < end; ++offsets) {
        RowWalk<Rows> rows(a + *offsets, lda);
        for (index_t left = steps; left > 0; left -= kTwoLines) {
            TwoLines next_a{ahead.a + *offsets + steps - left, lda};
            TwoLines more[2];
            if constexpr (More)
                for (int m = 0; m < 2; ++m)
                    more[m] = {ahead.more[m].at + ahead.more[m].advance * (steps - left), ahead.more[m].pitch};
#pragma GCC unroll 2
            for (index_t n = at_most(left, kTwoLines); n > 0; --n) {
                Vec weights[Vectors];
#pragma GCC unroll 2
                for (int j = 0; j < Vectors; ++j) weights[j] = load(b + j * kVectorFloats);
                // With one vector of columns loads are the bottleneck, and fetches are loads.
                if constexpr (Vectors > 1) {
                    next_a.fetch();
                    if constexpr (More) {
                        more[0].fetch();
                        more[1].fetch();
                    }
                    __builtin_prefetch(next_b);
                    __builtin_prefetch(next_b + kFarSteps * kTileCols, 0, 2);
                    __builtin_prefetch(next_b + kFarSteps * kTileCols + second_line, 0, 2);
                    next_b += b_step;
                }
#pragma GCC unroll 16
                for (int i = 0; i < Rows; ++i) {
                    const Vec value = broadcast(*rows.row(i));
#pragma GCC unroll 2
                    for (int j = 0; j < Vectors; ++j) acc[i][j] += value * weights[j];
                }
                rows.advance(1);
                b += kTileCols;
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
