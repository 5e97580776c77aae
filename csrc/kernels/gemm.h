// Every matrix product: direct and 1x1 convolutions, linear layers, and the register tile that Winograd frequencies
// share with them.
//
// The reduction goes in chunks. A chunk of one panel of B, 4 KiB at most, stays in L1 while some register tiles of rows
// pass by, so B is read once per block of rows from wherever it lies, and the accumulators of each chunk are added up
// in L1 as well. So each output element is a sum of short chains of fused multiply-adds in a fixed order, whatever the
// tile's height: results do not depend on how rows are split over tiles, blocks or threads, and the rounding error
// stays small, where that of one long chain would grow with the square root of its length (Higham, "Accuracy and
// Stability of Numerical Algorithms", section 4.2).
#pragma once

#include "kernels/simd.h"

namespace resfuse {
namespace {

// 28 accumulators of 32 registers (AVX-512); 12 of 16 elsewhere.
constexpr int kTileRows = kVectorFloats == 16 ? 14 : 6;
constexpr int kTileVectors = 2;
constexpr int kTileCols = kTileVectors * kVectorFloats;
constexpr index_t kChunk = 32;      // steps
constexpr index_t kBlockTiles = 8;  // of rows, whose sums stay in L1

template <int Rows, int Vectors>
using Accumulators = Vec[Rows][Vectors];

// What is read or written next, fetched meanwhile, a line a step.
struct GemmAhead {
    const float* a;  // rows, two lines of each
    index_t lda;
    const float* b;
    index_t b_step;
    const float* c = nullptr;  // rows to write and to add, two lines of each
    index_t ldc = 0;
    const float* residual = nullptr;
    index_t ldr = 0;
};

// Walks the first two lines of rows that lie `pitch` floats apart.
struct TwoLines {
    const float* at;
    index_t pitch;
    index_t step = kLineFloats;
    [[gnu::always_inline]] inline void fetch() {
        __builtin_prefetch(at);
        at += step;
        step = pitch - step;
    }
};

// acc = rows of A times columns of B.
template <bool Outputs, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply(const float* a, index_t lda, const float* b, index_t steps,
                                            const GemmAhead& ahead, Accumulators<Rows, Vectors>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Vectors; ++j) acc[i][j] = zero();
    TwoLines next_a{ahead.a, ahead.lda}, next_c{ahead.c, ahead.ldc}, next_residual{ahead.residual, ahead.ldr};
    const float* next_b = ahead.b;
    const index_t b_step = ahead.b_step;
#pragma GCC unroll 2
    for (; steps > 0; --steps) {
        Vec weights[Vectors];
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) weights[j] = load(b + j * kVectorFloats);
        next_a.fetch();
        if constexpr (Outputs) {
            next_c.fetch();
            next_residual.fetch();
        }
        __builtin_prefetch(next_b);
        next_b += b_step;
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
            const Vec value = broadcast(a[i * lda]);
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) acc[i][j] += value * weights[j];
        }
        ++a;
        b += kTileCols;
    }
}

// Sums so far, kTileCols floats a row, and those of one more chunk.
template <int Rows, int Vectors>
[[gnu::always_inline]] inline void add_sums(const float* sums, Accumulators<Rows, Vectors>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) acc[i][j] += load(sums + i * kTileCols + j * kVectorFloats);
}

template <int Rows, int Vectors>
[[gnu::always_inline]] inline void store_sums(float* sums, const Accumulators<Rows, Vectors>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) store(sums + i * kTileCols + j * kVectorFloats, acc[i][j]);
}

// Where a tile's results go.
struct Results {
    float* c;
    const float* residual;
    const float* scale;
    const float* bias;
    index_t cols;  // valid columns
};

// The epilogue of a tile, one vector of columns after the other so that its scale and bias stay in registers.
template <bool Residual, int Rows, int Vectors>
[[gnu::always_inline]] inline void finish_tile(const GemmArgs& g, const Results& to,
                                               const Accumulators<Rows, Vectors>& acc) {
    const Vec floor = broadcast(g.floor);
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
        const index_t column = j * kVectorFloats;
        const index_t n = to.cols - column;
        if (n <= 0) return;
        const Vec scale = g.scale ? load(to.scale + column) : broadcast(1.0f);
        const Vec bias = g.bias ? load(to.bias + column) : zero();
        if (n >= kVectorFloats) {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                Vec v = acc[i][j] * scale + bias;
                if constexpr (Residual) v += load(to.residual + i * g.ldr + column);
                store(to.c + i * g.ldc + column, clamp_below(v, floor));
            }
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                Vec v = acc[i][j] * scale + bias;
                if constexpr (Residual) v += load_first(to.residual + i * g.ldr + column, n);
                store_first(to.c + i * g.ldc + column, clamp_below(v, floor), n);
            }
        }
    }
}

// A part of the reduction for some register tiles, the first `longer` of which have one row more.
struct Chunk {
    const float* a;
    const float* next_a;  // of the chunk that follows
    const float* b;
    const float* ahead_b;
    index_t steps, tiles, longer;
    float* sums;
    bool first;
    Results to;
};

template <bool Last, int Rows, int Vectors>
[[gnu::always_inline]] inline void gemm_tile(const GemmArgs& g, const float* a, const float* next_a,
                                             const float* ahead_b, index_t b_step, const Chunk& chunk, float* sums,
                                             index_t row) {
    Accumulators<Rows, Vectors> acc;
    GemmAhead ahead{.a = next_a, .lda = g.lda, .b = ahead_b, .b_step = b_step};
    if constexpr (!Last) {
        multiply<false, Rows, Vectors>(a, g.lda, chunk.b, chunk.steps, ahead, acc);
        if (!chunk.first) add_sums<Rows, Vectors>(sums, acc);
        store_sums<Rows, Vectors>(sums, acc);
    } else {
        Results to = chunk.to;
        to.c += row * g.ldc;
        ahead.c = ahead.residual = to.c;
        ahead.ldc = ahead.ldr = g.ldc;
        if (g.residual) {
            ahead.residual = to.residual += row * g.ldr;
            ahead.ldr = g.ldr;
        }
        multiply<true, Rows, Vectors>(a, g.lda, chunk.b, chunk.steps, ahead, acc);
        if (!chunk.first) add_sums<Rows, Vectors>(sums, acc);
        if (g.residual) {
            finish_tile<true, Rows, Vectors>(g, to, acc);
        } else {
            finish_tile<false, Rows, Vectors>(g, to, acc);
        }
    }
}

template <bool Last, int Rows, int Vectors>
[[gnu::noinline]] void gemm_chunk(const GemmArgs& g, const Chunk& chunk) {
    // All tiles together fetch the weights of the chunk after the next.
    const index_t b_step = (kTileCols + chunk.tiles - 1) / chunk.tiles;
    const float* a = chunk.a;
    const float* ahead_b = chunk.ahead_b;
    float* sums = chunk.sums;
    index_t row = 0, left = chunk.tiles;
    if constexpr (Rows < kTileRows)
        for (index_t t = 0; t < chunk.longer; ++t, --left) {
            const float* const next = a + (Rows + 1) * g.lda;
            gemm_tile<Last, Rows + 1, Vectors>(g, a, left > 1 ? next : chunk.next_a, ahead_b, b_step, chunk, sums, row);
            a = next;
            sums += (Rows + 1) * kTileCols;
            row += Rows + 1;
            ahead_b += b_step * chunk.steps;
        }
    for (; left > 0; --left) {
        const float* const next = a + Rows * g.lda;
        gemm_tile<Last, Rows, Vectors>(g, a, left > 1 ? next : chunk.next_a, ahead_b, b_step, chunk, sums, row);
        a = next;
        sums += Rows * kTileCols;
        row += Rows;
        ahead_b += b_step * chunk.steps;
    }
}

template <int Rows>
inline void gemm_chunk_of(index_t rows, const GemmArgs& g, const Chunk& chunk, bool last) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return gemm_chunk_of<Rows - 1>(rows, g, chunk, last);
    }
    if (chunk.to.cols > kVectorFloats) {
        last ? gemm_chunk<true, Rows, kTileVectors>(g, chunk) : gemm_chunk<false, Rows, kTileVectors>(g, chunk);
    } else {
        last ? gemm_chunk<true, Rows, 1>(g, chunk) : gemm_chunk<false, Rows, 1>(g, chunk);
    }
}

// Rows [begin, end), few enough for the sums in L1.
inline void gemm_block(const GemmArgs& g, index_t begin, index_t end) {
    alignas(64) float sums[kBlockTiles * kTileRows * kTileCols];
    const index_t reduction = g.segments * g.segment_length;
    const index_t panels = (g.cols + kTileCols - 1) / kTileCols;
    const index_t rows = end - begin;
    // Even tiles: 20 rows are 10 + 10, not 14 + 6.
    const index_t tiles = (rows + kTileRows - 1) / kTileRows;
    const float* const a = g.a + begin * g.lda;
    for (index_t p = 0; p < panels; ++p) {
        const index_t column = p * kTileCols;
        const float* b = g.b + p * reduction * kTileCols;
        for (index_t segment = 0, step = 0; segment < g.segments;) {
            const index_t from = g.segment_offset[segment] + step;
            const index_t steps = g.segment_length - step < kChunk ? g.segment_length - step : kChunk;
            const bool first = segment == 0 && step == 0;
            step += steps;
            if (step == g.segment_length) {
                ++segment;
                step = 0;
            }
            const bool last = segment == g.segments;
            const Chunk chunk{.a = a + from,
                              .next_a = a + (last ? g.segment_offset[0] : g.segment_offset[segment] + step),
                              .b = b,
                              .ahead_b = b + 2 * kChunk * kTileCols,
                              .steps = steps,
                              .tiles = tiles,
                              .longer = rows % tiles,
                              .sums = sums,
                              .first = first,
                              .to = {.c = g.c + begin * g.ldc + column,
                                     .residual = g.residual ? g.residual + begin * g.ldr + column : nullptr,
                                     .scale = g.scale + column,
                                     .bias = g.bias + column,
                                     .cols = p + 1 == panels ? g.cols - column : kTileCols}};
            b += steps * kTileCols;
            gemm_chunk_of<kTileRows>(rows / tiles, g, chunk, last);
        }
    }
}

void gemm(const GemmArgs& g) {
    constexpr index_t block = kBlockTiles * kTileRows;
    const index_t blocks = (g.rows + block - 1) / block;
    for (index_t i = 0; i < blocks; ++i) gemm_block(g, g.rows * i / blocks, g.rows * (i + 1) / blocks);
}

}  // namespace
}  // namespace resfuse
