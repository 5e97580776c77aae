// The register tile of instructions that multiply a vector by one lane of another (NEON): a row's next elements of A
// come in as one vector. 8 rows of 2 vectors take 12 to 16 loads for 64 multiply-adds, and all of their 16 sums, 8
// vectors of A and 2 of B stay in the 32 registers. A core with two multipliers of four cycles needs 8 sums, one with
// four 16.
#pragma once

#include <arm_neon.h>

#include "kernels/gemm/tile.h"

namespace resfuse {
namespace {

constexpr index_t kLanes = 4;

template <int Lane, int Rows, int Vectors>
[[gnu::always_inline]] inline void add_lane(const Vec (&a)[Rows], const float* b, Accumulators<Rows, Vectors>& acc) {
    Vec weights[Vectors];
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) weights[j] = load(b + j * kVectorFloats);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j)
            acc[i][j] = (Vec)vfmaq_laneq_f32((float32x4_t)acc[i][j], (float32x4_t)weights[j], (float32x4_t)a[i], Lane);
}

// As in broadcast_tile.h; each sum adds up the same terms in the same order.
template <bool More, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply(const float* a, index_t lda, const index_t* offsets, index_t segments,
                                            index_t steps, const float* b, const GemmAhead& ahead,
                                            Accumulators<Rows, Vectors>& acc) {
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Vectors; ++j) acc[i][j] = zero();
    const float* next_b = ahead.b;
    for (const index_t* const end = offsets + segments; offsets < end; ++offsets) {
        RowWalk<Rows> rows(a + *offsets, lda);
        for (index_t left = steps; left > 0; left -= kTwoLines) {
            TwoLines next_a{ahead.a + *offsets + steps - left, lda};
            TwoLines more[2];
            if constexpr (More)
                for (int m = 0; m < 2; ++m)
                    more[m] = {ahead.more[m].at + ahead.more[m].advance * (steps - left), ahead.more[m].pitch};
            index_t n = at_most(left, kTwoLines);
            for (; n >= kLanes; n -= kLanes) {
                Vec factors[Rows];
#pragma GCC unroll 8
                for (int i = 0; i < Rows; ++i) factors[i] = load(rows.row(i));
                // Two lines of each of 8 rows in the 8 rounds of two lines.
                next_a.fetch();
                next_a.fetch();
                if constexpr (More)
                    for (int m = 0; m < 2; ++m) {
                        more[m].fetch();
                        more[m].fetch();
                    }
                __builtin_prefetch(next_b);
                next_b += kLanes * ahead.b_step;
                add_lane<0>(factors, b, acc);
                add_lane<1>(factors, b + kTileCols, acc);
                add_lane<2>(factors, b + 2 * kTileCols, acc);
                add_lane<3>(factors, b + 3 * kTileCols, acc);
                rows.advance(kLanes);
                b += kLanes * kTileCols;
            }
#pragma GCC unroll 1
            for (; n > 0; --n) {
                Vec factors[Rows];
#pragma GCC unroll 8
                for (int i = 0; i < Rows; ++i) factors[i] = broadcast(*rows.row(i));
                add_lane<0>(factors, b, acc);
                rows.advance(1);
                b += kTileCols;
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
