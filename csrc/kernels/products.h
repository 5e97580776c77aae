// The products of Winograd convolutions: for each frequency, tiles times one panel of weights.
//
// The reduction goes in chunks of kChunk steps. A chunk of the weights, 4 KiB at most, stays in L1 while all tiles
// of the block pass by, so weights are streamed once from wherever they lie, and the accumulators are added up in M,
// which is in L1 as well: short chains of additions, hence a small rounding error (see gemm.h), cost nothing.
#pragma once

#include "kernels/gemm.h"

namespace resfuse {
namespace {

template <int Rows>
[[gnu::always_inline]] inline void product_tile(const float* a, index_t lda, const float* b, index_t steps, bool add,
                                                float* c, const GemmAhead& ahead) {
    Accumulators<Rows, kTileVectors> acc;
    multiply<false, Rows, kTileVectors>(a, lda, b, steps, ahead, acc);
    if (add) add_sums<Rows, kTileVectors>(c, acc);
    store_sums<Rows, kTileVectors>(c, acc);
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
    for (index_t k = 0; k < depth; k += kChunk) {
        const index_t steps = depth - k < kChunk ? depth - k : kChunk;
        const float* a = g.a + k;
        const float* const next_chunk = k + steps < depth ? a + steps : g.next_a;
        float* c = g.c;
        GemmAhead ahead{.a = a, .lda = depth, .b = b + 2 * kChunk * kTileCols, .b_step = b_step};
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
