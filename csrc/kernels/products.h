// The products of Winograd convolutions: for each frequency, tiles times one panel of weights.
//
// The reduction goes in chunks of kProductsChunk steps. A chunk of the weights, 2 to 4 KiB, stays in L1 while all tiles
// of the block pass by, so weights are streamed once from wherever they lie, and the accumulators are added up in M,
// which is in L1 as well: short chains of additions, hence a small rounding error (see gemm.h), cost nothing.
#pragma once

#include "kernels/gemm.h"

namespace resfuse {
namespace {

constexpr index_t kProductsChunk = 32;

// What is read next, fetched a line a step: two lines of each row of A, and weights.
struct ProductsAhead {
    const float* a;
    const float* b;
    index_t b_step;
};

template <int Rows>
[[gnu::always_inline]] inline void product_tile(const float* a, index_t lda, const float* b, index_t steps, bool add,
                                                float* c, ProductsAhead ahead) {
    Vec acc[Rows][kTileVectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < kTileVectors; ++j) acc[i][j] = zero();
    index_t a_step = kLineFloats;
#pragma GCC unroll 2
    for (; steps > 0; --steps) {
        Vec weights[kTileVectors];
#pragma GCC unroll 2
        for (int j = 0; j < kTileVectors; ++j) weights[j] = load(b + j * kVectorFloats);
        __builtin_prefetch(ahead.a);
        __builtin_prefetch(ahead.b);
        ahead.a += a_step;
        a_step = lda - a_step;
        ahead.b += ahead.b_step;
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
            const Vec x = broadcast(a[i * lda]);
#pragma GCC unroll 2
            for (int j = 0; j < kTileVectors; ++j) acc[i][j] += x * weights[j];
        }
        ++a;
        b += kTileCols;
    }
    if (add) {
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < kTileVectors; ++j) acc[i][j] += load(c + i * kTileCols + j * kVectorFloats);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < kTileVectors; ++j) store(c + i * kTileCols + j * kVectorFloats, acc[i][j]);
}

// One frequency.
struct ProductsBlock {
    const float* a;
    const float* b;
    float* c;
    index_t depth;
    index_t tiles;   // of registers
    index_t longer;  // of these, the first so many have one row more
    const float* next_a;
};

template <int Rows>
[[gnu::noinline]] void products_of(const ProductsBlock& g) {
    // All register tiles of a chunk together fetch the weights of the one after the next.
    const index_t b_step = (kTileCols + g.tiles - 1) / g.tiles;
    const index_t depth = g.depth;
    const float* b = g.b;
    for (index_t k = 0; k < depth; k += kProductsChunk) {
        const index_t steps = depth - k < kProductsChunk ? depth - k : kProductsChunk;
        const float* a = g.a + k;
        const float* const next_chunk = k + steps < depth ? a + steps : g.next_a;
        float* c = g.c;
        ProductsAhead ahead{a, b + 2 * kProductsChunk * kTileCols, b_step};
        index_t left = g.tiles;
        if constexpr (Rows < kTileRows)
            for (index_t t = 0; t < g.longer; ++t, --left) {
                ahead.a = left > 1 ? a + (Rows + 1) * depth : next_chunk;
                product_tile<Rows + 1>(a, depth, b, steps, k > 0, c, ahead);
                a += (Rows + 1) * depth;
                c += (Rows + 1) * kTileCols;
                ahead.b += b_step * steps;
            }
        for (; left > 0; --left) {
            ahead.a = left > 1 ? a + Rows * depth : next_chunk;
            product_tile<Rows>(a, depth, b, steps, k > 0, c, ahead);
            a += Rows * depth;
            c += Rows * kTileCols;
            ahead.b += b_step * steps;
        }
        b += steps * kTileCols;
    }
}

template <int Rows>
inline void products_of_rows(const ProductsBlock& g, index_t rows) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return products_of_rows<Rows - 1>(g, rows);
    }
    products_of<Rows>(g);
}

void winograd_products(const WinogradProductsArgs& g) {
    for (index_t f = 0; f < g.frequencies; ++f) {
        const index_t rows = g.end[f] - g.begin[f];
        if (rows <= 0) continue;
        // Even tiles: 20 rows are 10 + 10, not 14 + 6.
        const index_t tiles = (rows + kTileRows - 1) / kTileRows;
        products_of_rows<kTileRows>({.a = g.v + f * g.v_frequency + g.begin[f] * g.depth,
                                     .b = g.weights + f * g.depth * kTileCols,
                                     .c = g.m + f * g.m_frequency + g.begin[f] * kTileCols,
                                     .depth = g.depth,
                                     .tiles = tiles,
                                     .longer = rows % tiles,
                                     .next_a = g.v + (f + 1) * g.v_frequency},
                                    rows / tiles);
    }
}

}  // namespace
}  // namespace resfuse
