// The tile of dot products (dot_tile.h) of instructions that multiply units of a vector by one unit of another (NEON):
// a row's next units come in as one vector.
//
// What is multiplied, a D says as in dot_tile.h, and besides: Operands, a vector of kUnits units of a row; how it is
// loaded (`load`, and `load_unit` where fewer are left); Weights, one unit of a panel's columns; and
// add_products<Unit>.
#pragma once

#include <arm_neon.h>

#include "kernels/gemm/tile.h"

namespace resfuse {
namespace {

template <class D, int Unit, int Rows, int Vectors>
[[gnu::always_inline]] inline void add_unit(const typename D::Operands (&a)[Rows], const typename D::Weight* b,
                                            typename D::Sum (&acc)[Rows][Vectors]) {
    const typename D::template Weights<Vectors> weights(b);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) D::template add_products<Unit>(acc[i], a[i], weights);
}

template <class D, int Rows, int Vectors, int... Unit>
[[gnu::always_inline]] inline void add_units(const typename D::Operands (&a)[Rows], const typename D::Weight* b,
                                             typename D::Sum (&acc)[Rows][Vectors],
                                             std::integer_sequence<int, Unit...>) {
    (add_unit<D, Unit>(a, b + Unit * D::kUnit * kTileCols, acc), ...);
}

// acc += rows of A times one segment of B, whose end it returns.
template <class D, int Rows, int Vectors>
[[gnu::always_inline]] inline const typename D::Weight* add_lane_segment(RowWalk<Rows, typename D::Operand> rows,
                                                                         index_t steps, const typename D::Weight* b,
                                                                         typename D::Sum (&acc)[Rows][Vectors]) {
    constexpr index_t kSteps = D::kUnits * D::kUnit;
    for (; steps >= kSteps; steps -= kSteps) {
        typename D::Operands a[Rows];
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) a[i] = D::load(rows.row(i));
        add_units<D>(a, b, acc, std::make_integer_sequence<int, D::kUnits>{});
        rows.advance(kSteps);
        b += kSteps * kTileCols;
    }
#pragma GCC unroll 1
    for (; steps > 0; steps -= D::kUnit) {
        typename D::Operands a[Rows];
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) a[i] = D::load_unit(rows.row(i));
        add_unit<D, 0>(a, b, acc);
        rows.advance(D::kUnit);
        b += D::kUnit * kTileCols;
    }
    return b;
}

}  // namespace
}  // namespace resfuse
