// Products of rows and columns with fewer multiply-adds than terms, after S. Winograd, "A New Algorithm for Inner
// Product" (IEEE Transactions on Computers C-17, 1968): two terms of a sum are
//
//     x1 y1 + x2 y2 = (x1 + y2) (x2 + y1) - x1 x2 - y1 y2,
//
// a multiplication and two additions, besides what depends on the row or the column alone. Of no use where additions
// take the place of multiply-adds. But AMD's cores since Zen have adders beside their multipliers: where of three terms
// two are such a pair and one is a multiply-add, both kinds of units are busy all the time, and three terms take the
// time of two.
//
// Signs alternate, (x1 - y2) (x2 - y1) = x1 x2 + y1 y2 - x1 y1 - x2 y2 being subtracted from the sum in turn, so that
// x1 x2 and y1 y2 of all pairs mostly cancel and do not grow beyond what the sum is. Rows and columns are scaled by
// powers of two to about the same magnitude, as x + y loses what of one is too small for the other. The error is then
// that of direct sums: the pairs' larger roundings are made up for by their smaller number.
//
// Rows are copied for that: [depth floats, scaled][a line or more: less the sum of x1 x2 of each chunk, and last the
// factor that takes the row's scale back]. The weights of a chunk follow a row of less its sums of y1 y2; those of
// pairs to be subtracted are negative.
#pragma once

#include "kernels/gemm/args.h"
#include "kernels/gemm/tile.h"
#include "kernels/paired/args.h"

namespace resfuse {
namespace {

// 24 accumulators, six columns and two sums fill the 32 registers of AVX-512.
constexpr int kPairedTileRows = kVectorFloats == 16 ? 12 : 4;
constexpr index_t kTriple = 3;         // a pair and a single term
constexpr index_t kSignedTriples = 6;  // until signs repeat
constexpr index_t kPairPattern = 48;   // until pairs lie in the same lanes of vectors again: one of chunks' units
static_assert(kPairedChunk % kPairPattern == 0);

// Steps of a chunk of the reduction.
constexpr index_t paired_part(index_t depth) { return even_part(depth, kPairedChunk, kPairPattern); }

// y + broadcast(*x): one instruction that loads x, where a broadcast of its own would take an adder's or a multiplier's
// place (Zen 4).
[[gnu::always_inline]] inline Vec add_broadcast(const float* x, Vec y) {
#if defined(__AVX512F__)
    Vec sum;
    asm("vaddps %1%{1to16%}, %2, %0" : "=v"(sum) : "m"(*x), "v"(y));
    return sum;
#else
    return broadcast(*x) + y;
#endif
}

// broadcast(*x) * y
[[gnu::always_inline]] inline Vec times_broadcast(const float* x, Vec y) {
#if defined(__AVX512F__)
    Vec product;
    asm("vmulps %1%{1to16%}, %2, %0" : "=v"(product) : "m"(*x), "v"(y));
    return product;
#else
    return broadcast(*x) * y;
#endif
}

// sum += broadcast(*x) * y
[[gnu::always_inline]] inline void add_product(const float* x, Vec y, Vec& sum) {
#if defined(__AVX512F__)
    asm("vfmadd231ps %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*x), "v"(y));
#else
    sum += broadcast(*x) * y;
#endif
}

template <bool Negative, int Rows, int Vectors>
[[gnu::always_inline]] inline void add_triple(const RowWalk<Rows>& rows, index_t step, const float* b,
                                              Accumulators<Rows, Vectors>& acc) {
    Vec y1[Vectors], y2[Vectors], y3[Vectors];
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
        y1[j] = load(b + j * kVectorFloats);
        y2[j] = load(b + kTileCols + j * kVectorFloats);
        y3[j] = load(b + 2 * kTileCols + j * kVectorFloats);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
        const float* const x = rows.row(i) + step;
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) {
            const Vec left = add_broadcast(x, y2[j]), right = add_broadcast(x + 1, y1[j]);
            add_product(x + 2, y3[j], acc[i][j]);
            if constexpr (Negative) {
                acc[i][j] -= left * right;
            } else {
                acc[i][j] += left * right;
            }
        }
    }
}

// acc = rows of A times columns of B, a chunk of `steps` steps; `correction` floats behind A the row's own sums lie.
// Loads are the bottleneck next to the sums, so weights are fetched into L2 only, and into L1 by few tiles, whose
// weights stream.
template <bool More, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply_paired(const float* a, index_t lda, index_t correction, index_t steps,
                                                   const float* b, const GemmAhead& ahead,
                                                   Accumulators<Rows, Vectors>& acc) {
    RowWalk<Rows> rows(a, lda);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j)
            acc[i][j] = add_broadcast(rows.row(i) + correction, load(b + j * kVectorFloats));
    b += kTileCols;
    const float* next_b = ahead.b + kFarSteps * kTileCols;
    const index_t b_floats = kSignedTriples * ahead.b_step;
    const index_t near_floats = ahead.b_step >= kLineFloats ? b_floats : 0;
    RowsAhead more[2] = {ahead.more[0], ahead.more[1]};
    int more_rows = More ? Rows : 0;
    for (index_t left = steps; left > 0; left -= kPairPattern) {
        index_t n = at_most(left, kPairPattern);
        for (; n >= kSignedTriples; n -= kSignedTriples) {
            for (index_t at = 0; at < b_floats; at += kLineFloats) __builtin_prefetch(next_b + at, 0, 2);
            for (index_t at = 0; at < near_floats; at += kLineFloats)
                __builtin_prefetch(next_b + at - kFarSteps * kTileCols);
            next_b += b_floats;
            if constexpr (More)
                if (more_rows > 0) {
                    --more_rows;
#pragma GCC unroll 2
                    for (RowsAhead& m : more) {
                        __builtin_prefetch(m.at);
                        __builtin_prefetch(m.at + kLineFloats);
                        m.at += m.pitch;
                    }
                }
            add_triple<false, Rows, Vectors>(rows, 0, b, acc);
            add_triple<true, Rows, Vectors>(rows, kTriple, b + kTriple * kTileCols, acc);
            b += kSignedTriples * kTileCols;
            rows.advance(kSignedTriples);
        }
        if (n >= kTriple) {
            add_triple<false, Rows, Vectors>(rows, 0, b, acc);
            b += kTriple * kTileCols;
            rows.advance(kTriple);
            n -= kTriple;
        }
        for (; n > 0; --n) {
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) {
                const Vec y = load(b + j * kVectorFloats);
#pragma GCC unroll 16
                for (int i = 0; i < Rows; ++i) add_product(rows.row(i), y, acc[i][j]);
            }
            b += kTileCols;
            rows.advance(1);
        }
    }
}

}  // namespace
}  // namespace resfuse
