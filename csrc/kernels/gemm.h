// The register tile of every matrix product: direct and 1x1 convolutions, Winograd frequencies, linear layers.
//
// Each output element is a sum of chains of fused multiply-adds over the reduction in a fixed order, whatever the
// tile's height, so results do not depend on how rows are split over tiles, blocks or threads. Chains end after about
// `chain` steps: the rounding error of one long chain grows with the square root of its length (Higham, "Accuracy and
// Stability of Numerical Algorithms", section 4.2).
#pragma once

#include "kernels/simd.h"

namespace resfuse {
namespace {

// 28 accumulators of 32 registers (AVX-512); 12 of 16 elsewhere.
constexpr int kTileRows = kVectorFloats == 16 ? 14 : 6;
constexpr int kTileVectors = 2;
constexpr int kTileCols = kTileVectors * kVectorFloats;
// Steps ahead: weights that stream from memory (few rows, many channels) come an eighth faster, the rest as fast.
constexpr index_t kPrefetch = 32;

// The epilogue of a tile, one vector of columns after the other so that its scale and bias stay in registers.
template <int Rows, int Vectors, bool Residual>
inline void finish_tile(const GemmArgs& g, index_t first_row, const Vec (&sums)[Rows][Vectors]) {
    const Vec floor = broadcast(g.floor);
    float* const c = g.c + first_row * g.ldc;
    const float* const residual = Residual ? g.residual + first_row * g.ldr : nullptr;
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
        const index_t column = j * kVectorFloats;
        const index_t n = g.cols - column;
        if (n <= 0) return;
        const Vec scale = g.scale ? load(g.scale + column) : broadcast(1.0f);
        const Vec bias = g.bias ? load(g.bias + column) : zero();
        if (n >= kVectorFloats) {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                Vec v = sums[i][j] * scale + bias;
                if constexpr (Residual) v += load(residual + i * g.ldr + column);
                store(c + i * g.ldc + column, clamp_below(v, floor));
            }
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                Vec v = sums[i][j] * scale + bias;
                if constexpr (Residual) v += load_first(residual + i * g.ldr + column, n);
                store_first(c + i * g.ldc + column, clamp_below(v, floor), n);
            }
        }
    }
}

// A tile without an epilogue.
template <int Rows, int Vectors>
inline void store_tile(const GemmArgs& g, index_t first_row, const Vec (&sums)[Rows][Vectors]) {
    float* const c = g.c + first_row * g.ldc;
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) store(c + i * g.ldc + j * kVectorFloats, sums[i][j]);
}

// Fetches what the epilogue will read and write while the products are computed.
template <int Vectors>
inline void prefetch_rows(const GemmArgs& g, index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
        for (int j = 0; j < Vectors; ++j) {
            if (g.residual) __builtin_prefetch(g.residual + i * g.ldr + j * kVectorFloats);
            __builtin_prefetch(g.c + i * g.ldc + j * kVectorFloats, 1);
        }
}

// The reduction is cut into pieces of about g.chain steps: some whole segments, or a part of one. GCC cannot see that
// `total` is read only after a first piece has written it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
template <int Rows, int Vectors>
[[gnu::noinline]] void gemm_tile(const GemmArgs& g, index_t first_row) {
    const bool whole_segments = g.segment_length <= g.chain;
    const index_t segments_each = whole_segments ? g.chain / g.segment_length : 1;
    const index_t depth_each = whole_segments ? g.segment_length : g.chain;
    const index_t lda = g.lda;
    const float* b = g.b;
    Vec total[Rows][Vectors];
    bool has_total = false;
    for (index_t s = 0, begin = 0;;) {
        const index_t s_end = g.segments - s < segments_each ? g.segments : s + segments_each;
        const index_t depth = g.segment_length - begin < depth_each ? g.segment_length - begin : depth_each;
        Vec acc[Rows][Vectors];
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Vectors; ++j) acc[i][j] = zero();
        for (index_t segment = s; segment < s_end; ++segment) {
            const float* a = g.a + first_row * lda + g.segment_offset[segment] + begin;
            for (index_t c = 0; c < depth; ++c) {
                Vec weights[Vectors];
#pragma GCC unroll 2
                for (int j = 0; j < Vectors; ++j) {
                    weights[j] = load(b + c * kTileCols + j * kVectorFloats);
                    __builtin_prefetch(b + (c + kPrefetch) * kTileCols + j * kVectorFloats);
                }
#pragma GCC unroll 16
                for (int i = 0; i < Rows; ++i) {
                    const Vec x = broadcast(a[i * lda + c]);
#pragma GCC unroll 2
                    for (int j = 0; j < Vectors; ++j) acc[i][j] += x * weights[j];
                }
            }
            b += depth * kTileCols;
        }
        begin += depth;
        if (begin == g.segment_length) {
            s = s_end;
            begin = 0;
        }
        if (has_total) {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
                for (int j = 0; j < Vectors; ++j) acc[i][j] += total[i][j];
        }
        if (s == g.segments) {
            if (g.plain) {
                store_tile<Rows, Vectors>(g, first_row, acc);
            } else if (g.residual) {
                finish_tile<Rows, Vectors, true>(g, first_row, acc);
            } else {
                finish_tile<Rows, Vectors, false>(g, first_row, acc);
            }
            return;
        }
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) total[i][j] = acc[i][j];
        has_total = true;
    }
}
#pragma GCC diagnostic pop

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
        prefetch_rows<Vectors>(g, begin, end);
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
