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
// Steps ahead, as many as take about 450 cycles: weights that stream from memory (few rows, many channels) come an
// eighth faster, the rest as fast.
template <int Rows>
constexpr index_t kPrefetch = Rows > 4 ? 448 / Rows : 112;

// One register tile of a product: rows of A, one panel of B, and what to fetch meanwhile for later tiles.
struct GemmTile {
    const float* a;
    const float* b;
    float* c;
    const float* residual;
    const float* scale;
    const float* bias;
    index_t cols;        // valid columns
    const float* ahead;  // read later: fetched `ahead_step` floats a step
    index_t ahead_step;
    const float* next_c;         // rows that the next tile writes
    const float* next_residual;  // and adds
};

// The epilogue of a tile, one vector of columns after the other so that its scale and bias stay in registers.
template <int Rows, int Vectors, bool Residual>
inline void finish_tile(const GemmArgs& g, const GemmTile& tile, const Vec (&sums)[Rows][Vectors]) {
    const Vec floor = broadcast(g.floor);
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
        const index_t column = j * kVectorFloats;
        const index_t n = tile.cols - column;
        if (n <= 0) return;
        const Vec scale = g.scale ? load(tile.scale + column) : broadcast(1.0f);
        const Vec bias = g.bias ? load(tile.bias + column) : zero();
        if (n >= kVectorFloats) {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                Vec v = sums[i][j] * scale + bias;
                if constexpr (Residual) v += load(tile.residual + i * g.ldr + column);
                store(tile.c + i * g.ldc + column, clamp_below(v, floor));
            }
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                Vec v = sums[i][j] * scale + bias;
                if constexpr (Residual) v += load_first(tile.residual + i * g.ldr + column, n);
                store_first(tile.c + i * g.ldc + column, clamp_below(v, floor), n);
            }
        }
    }
}

// Where a tile's products stand.
struct GemmCursor {
    const float* a;
    const float* b;
    const float* ahead;
};

template <int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply_step(index_t lda, index_t ahead_step, GemmCursor& at,
                                                 Vec (&acc)[Rows][Vectors]) {
    Vec weights[Vectors];
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
        weights[j] = load(at.b + j * kVectorFloats);
        __builtin_prefetch(at.b + kPrefetch<Rows> * kTileCols + j * kVectorFloats);
    }
    __builtin_prefetch(at.ahead, 0, 1);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
        const Vec x = broadcast(at.a[i * lda]);
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) acc[i][j] += x * weights[j];
    }
    ++at.a;
    at.b += kTileCols;
    at.ahead += ahead_step;
}

// Steps of one accumulator where its rounding error is the result's.
constexpr index_t kChain = kFused ? 192 : 128;

// The reduction is cut into pieces of about g.chain steps: some whole segments, or a part of one. GCC cannot see that
// `total` is read only after a first piece has written it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
template <int Rows, int Vectors>
[[gnu::noinline]] void gemm_tile(const GemmArgs& g, const GemmTile& tile) {
    const bool whole_segments = g.segment_length <= g.chain;
    const index_t segments_each = whole_segments ? g.chain / g.segment_length : 1;
    const index_t depth_each = whole_segments ? g.segment_length : g.chain;
    const index_t lda = g.lda, ahead_step = tile.ahead_step;
    GemmCursor at{tile.a, tile.b, tile.ahead};
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
            at.a = tile.a + g.segment_offset[segment] + begin;
            index_t left = depth;
            if (!has_total && segment == 0 && depth >= Rows * Vectors) {
                // What the next tile writes and adds, a line a step: all at once would fill the queue of misses in
                // front of the weights.
                const float *c = tile.next_c, *residual = tile.next_residual;
                left -= Rows * Vectors;
#pragma GCC unroll 1
                for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
                    for (int j = 0; j < Vectors; ++j) {
                        __builtin_prefetch(c + j * kVectorFloats, 1);
                        __builtin_prefetch(residual + j * kVectorFloats);
                        multiply_step<Rows, Vectors>(lda, ahead_step, at, acc);
                    }
                    c += g.ldc;
                    residual += g.ldr;
                }
            }
#pragma GCC unroll 2
            for (; left > 0; --left) multiply_step<Rows, Vectors>(lda, ahead_step, at, acc);
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
            if (g.residual) {
                finish_tile<Rows, Vectors, true>(g, tile, acc);
            } else {
                finish_tile<Rows, Vectors, false>(g, tile, acc);
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
inline void gemm_tile_of(const GemmArgs& g, const GemmTile& tile, index_t rows) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return gemm_tile_of<Rows - 1, Vectors>(g, tile, rows);
    }
    gemm_tile<Rows, Vectors>(g, tile);
}

// Rows outside, panels inside: a tile's rows of A stay in L1 for all panels, and its rows of C are written from left to
// right. The caller passes as many panels as L2 holds.
void gemm(const GemmArgs& g) {
    const index_t reduction = g.segments * g.segment_length;
    const index_t panels = (g.cols + kTileCols - 1) / kTileCols;
    // Even tiles: 20 rows are 10 + 10, not 14 + 6.
    const index_t tiles = (g.rows + kTileRows - 1) / kTileRows;
    if (tiles == 0) return;
    // Between them all tiles fetch the panel behind the last one, or all panels the next rows.
    const bool next_rows = panels > 1 && g.segments == 1 && g.lda >= reduction;
    const index_t ahead_step = next_rows ? (kTileRows + panels - 1) / panels : (kTileCols + tiles - 1) / tiles;
    for (index_t t = 0; t < tiles; ++t) {
        const index_t begin = g.rows * t / tiles, end = g.rows * (t + 1) / tiles;
        for (index_t p = 0; p < panels; ++p) {
            const index_t column = p * kTileCols;
            const bool last_panel = p + 1 == panels;
            const index_t next_row = last_panel && t + 1 < tiles ? end : begin;
            const index_t next_column = last_panel ? 0 : column + kTileCols;
            float* const next_c = g.c + next_row * g.ldc + next_column;
            const GemmTile tile{
                .a = g.a + begin * g.lda,
                .b = g.b + p * reduction * kTileCols,
                .c = g.c + begin * g.ldc + column,
                .residual = g.residual ? g.residual + begin * g.ldr + column : nullptr,
                .scale = g.scale + column,
                .bias = g.bias + column,
                .cols = last_panel ? g.cols - column : kTileCols,
                .ahead = next_rows ? g.a + end * g.lda + p * reduction * ahead_step
                                   : g.b + (panels * kTileCols + t * ahead_step) * reduction,
                .ahead_step = ahead_step,
                .next_c = next_c,
                .next_residual = g.residual ? g.residual + next_row * g.ldr + next_column : next_c,
            };
            if (tile.cols > kVectorFloats) {
                gemm_tile_of<kTileRows, kTileVectors>(g, tile, end - begin);
            } else {
                gemm_tile_of<kTileRows, 1>(g, tile, end - begin);
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
