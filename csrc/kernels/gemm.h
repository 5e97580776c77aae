// The register tile of every matrix product: direct and 1x1 convolutions, Winograd frequencies, linear layers.
//
// Each output element is one chain of fused multiply-adds over the reduction in a fixed order, whatever the tile's
// height, so results do not depend on how rows are split over tiles, blocks or threads.
#pragma once

#include "kernels/simd.h"

namespace resfuse {
namespace {

// 28 accumulators of 32 registers (AVX-512); 12 of 16 elsewhere.
constexpr int kTileRows = kVectorFloats == 16 ? 14 : 6;
constexpr int kTileVectors = 2;
constexpr int kTileCols = kTileVectors * kVectorFloats;

template <int Vectors>
inline void finish_row(const GemmArgs& g, index_t row, const Vec* acc) {
    const Vec floor = broadcast(g.floor);
    for (int j = 0; j < Vectors; ++j) {
        const index_t n = g.cols - j * kVectorFloats;
        if (n <= 0) break;
        Vec v = acc[j];
        if (g.bias) v += load(g.bias + j * kVectorFloats);
        if (g.residual) v += load_first(g.residual + row * g.ldr + j * kVectorFloats, n);
        store_first(g.c + row * g.ldc + j * kVectorFloats, clamp_below(v, floor), n);
    }
}

template <int Rows, int Vectors>
inline void gemm_tile(const GemmArgs& g, index_t first_row) {
    Vec acc[Rows][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Vectors; ++j) acc[i][j] = zero();
    const index_t lda = g.lda;
    const float* b = g.b;
    for (index_t s = 0; s < g.segments; ++s) {
        const float* a = g.a + first_row * lda + g.segment_offset[s];
        for (index_t c = 0; c < g.segment_length; ++c) {
            Vec weights[Vectors];
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) weights[j] = load(b + c * kTileCols + j * kVectorFloats);
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                const Vec x = broadcast(a[i * lda + c]);
#pragma GCC unroll 2
                for (int j = 0; j < Vectors; ++j) acc[i][j] += x * weights[j];
            }
        }
        b += g.segment_length * kTileCols;
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) finish_row<Vectors>(g, first_row + i, acc[i]);
}

template <int Rows, int Vectors>
inline void gemm_tile_of(const GemmArgs& g, index_t first_row, int rows) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return gemm_tile_of<Rows - 1, Vectors>(g, first_row, rows);
    }
    gemm_tile<Rows, Vectors>(g, first_row);
}

template <int Vectors>
void gemm_rows(const GemmArgs& g) {
    // Even tiles: 20 rows are 10 + 10, not 14 + 6.
    const index_t tiles = (g.rows + kTileRows - 1) / kTileRows;
    for (index_t t = 0; t < tiles; ++t) {
        const index_t begin = g.rows * t / tiles;
        const index_t end = g.rows * (t + 1) / tiles;
        gemm_tile_of<kTileRows, Vectors>(g, begin, static_cast<int>(end - begin));
    }
}

void gemm(const GemmArgs& g) {
    if (g.cols > kVectorFloats) {
        gemm_rows<kTileVectors>(g);
    } else {
        gemm_rows<1>(g);
    }
}

}  // namespace
}  // namespace resfuse
