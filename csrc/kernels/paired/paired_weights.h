// The weights of products in pairs of terms (paired_tile.h): scaled, and each chunk behind its own sums.
#pragma once

#include "kernels/gemm/gemm.h"
#include "kernels/paired/args.h"
#include "kernels/simd/lanes.h"

namespace resfuse {
namespace {

constexpr int kColumnParts = kTileCols / kVectorDoubles;

inline void column_squares(const float* panel, index_t depth, double* squares) {
    VecDouble sums[kColumnParts] = {};
    for (index_t i = 0; i < depth; ++i, panel += kTileCols)
#pragma GCC unroll 4
        for (int j = 0; j < kColumnParts; ++j) {
            const VecDouble w = load_doubles(panel + j * kVectorDoubles);
            sums[j] += w * w;
        }
    std::memcpy(squares, sums, sizeof sums);
}

// What takes the powers of output channels out of their weights.
struct ColumnFactors {
    Vec v[kTileVectors];
    explicit ColumnFactors(const float* powers) {
        for (int j = 0; j < kTileVectors; ++j) v[j] = broadcast(1.0f) / load(powers + j * kVectorFloats);
    }
};

inline void step_squares(const float* panel, index_t depth, const float* powers, float* squares) {
    const ColumnFactors factors(powers);
    for (index_t i = 0; i < depth; ++i, panel += kTileCols) {
        Vec sum = zero();
#pragma GCC unroll 2
        for (int j = 0; j < kTileVectors; ++j) {
            const Vec w = load(panel + j * kVectorFloats) * factors.v[j];
            sum += w * w;
        }
        squares[i] = sum_of(sum);
    }
}

// In place: rows move forward, as fewer rows of sums lie before each than there are chunks.
inline void pack_paired(const PackPairedArgs& g) {
    const ColumnFactors factors(g.powers);
    const index_t part = paired_part(g.depth);
    const float* from = g.panel + (matrix_rows<Form::paired>(g.depth) - g.depth) * kTileCols;
    const float* step_scale = g.step_scale;
    float* to = g.panel;
    for (index_t begin = 0; begin < g.depth; begin += part) {
        const index_t length = at_most(part, g.depth - begin);
        float* const sums_row = to;
        to += kTileCols;
        VecDouble sums[kColumnParts] = {};
        for (index_t i = 0; i < length; ++i, from += kTileCols, to += kTileCols, ++step_scale) {
            const index_t triple = i / kTriple, in_triple = i % kTriple;
            const bool in_pair = in_triple < kTriple - 1 && (triple + 1) * kTriple <= length;
            const bool subtracted = triple % 2 != 0;
            const Vec factor = broadcast((in_pair && subtracted ? -1.0f : 1.0f) / *step_scale);
#pragma GCC unroll 2
            for (int j = 0; j < kTileVectors; ++j)
                store(to + j * kVectorFloats, load(from + j * kVectorFloats) * factors.v[j] * factor);
            if (!in_pair || in_triple == 0) continue;
#pragma GCC unroll 4
            for (int j = 0; j < kColumnParts; ++j) {
                const float* const second = to + j * kVectorDoubles;
                const VecDouble product = load_doubles(second - kTileCols) * load_doubles(second);
                sums[j] += subtracted ? product : -product;
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < kColumnParts; ++j) store_rounded(sums_row + j * kVectorDoubles, sums[j]);
    }
}

}  // namespace
}  // namespace resfuse
