// The register tile of dot products: units of a few small operands, 32 bits together, that one instruction multiplies
// and adds up. What is multiplied, and in which type it is summed up, a D says: Operand, Weight, their kUnit, Lane and
// the vector Sum of it, and add_products.
//
// As in gemm.h, a chunk of one panel of B stays in L1 while the register tiles of some rows pass by, and the sums of a
// block of rows stay there too.
#pragma once

#include "kernels/gemm/tile.h"

namespace resfuse {
namespace {

// The 32 bits at p in all lanes.
template <class T>
[[gnu::always_inline]] inline VecBits broadcast_unit(const T* p) {
    std::uint32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return VecBits{} + bits;
}

constexpr index_t kDotBlockTiles = 8;          // of rows, whose sums stay in L1
constexpr index_t kDotChunkBytes = 16 * 1024;  // of a panel, that stay there too

// Some rows of A times a chunk of a panel: sums, kTileCols a row, are begun or added to.
template <class D>
struct DotTile {
    const typename D::Operand* a;
    index_t lda;
    const index_t* offsets;
    index_t segments, steps;  // steps of each segment, whole units
    const typename D::Weight* b;
    typename D::Lane* sums;
    bool accumulate;
    const typename D::Lane* offset = nullptr;  // what sums begin with; null: nothing
};

template <class D, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply_dot_tile(const DotTile<D>& tile) {
    // What is there already, or the same for all rows.
    static constexpr typename D::Lane kNothing[kTileCols] = {};
    const typename D::Lane* const begin = tile.accumulate ? tile.sums : tile.offset ? tile.offset : kNothing;
    const index_t pitch = tile.accumulate ? kTileCols : 0;
    typename D::Sum acc[Rows][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) acc[i][j] = load_raw<typename D::Sum>(begin + i * pitch + j * kVectorFloats);
    const typename D::Weight* b = tile.b;
    const index_t *offset = tile.offsets, *const end = offset + tile.segments;
    // There is at least one step: where there might be none, GCC would move all sums through memory on the way around.
    do {
        RowWalk<Rows, typename D::Operand> rows(tile.a + *offset, tile.lda);
        index_t left = tile.steps;
        do {
            VecBits weights[Vectors];
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; ++j) weights[j] = load_raw<VecBits>(b + j * kVectorFloats * D::kUnit);
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                const VecBits operands = broadcast_unit(rows.row(i));
#pragma GCC unroll 2
                for (int j = 0; j < Vectors; ++j) acc[i][j] = D::add_products(acc[i][j], operands, weights[j]);
            }
            rows.advance(D::kUnit);
            b += kTileCols * D::kUnit;
            left -= D::kUnit;
        } while (left > 0);
    } while (++offset < end);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) store_vector(tile.sums + i * kTileCols + j * kVectorFloats, acc[i][j]);
}

template <class D, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply_dot_tiles(DotTile<D>& tile, index_t tiles) {
    for (; tiles > 0; --tiles) {
        multiply_dot_tile<D, Rows, Vectors>(tile);
        tile.a += Rows * tile.lda;
        tile.sums += Rows * kTileCols;
    }
}

// The first `longer` tiles have Rows + 1 rows.
template <class D, int Rows, int Vectors>
[[gnu::noinline]] void multiply_dot_chunk(DotTile<D> tile, index_t longer, index_t tiles) {
    if constexpr (Rows < kTileRows) multiply_dot_tiles<D, Rows + 1, Vectors>(tile, longer);
    multiply_dot_tiles<D, Rows, Vectors>(tile, tiles - longer);
}

// `rows` of the shorter tiles.
template <class D, int Vectors, int Rows = kTileRows>
inline void multiply_dot_rows(index_t rows, const DotTile<D>& tile, index_t longer, index_t tiles) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return multiply_dot_rows<D, Vectors, Rows - 1>(rows, tile, longer, tiles);
    }
    multiply_dot_chunk<D, Rows, Vectors>(tile, longer, tiles);
}

// All rows of a block times a chunk, in tiles of about the same height.
template <class D>
inline void multiply_dot_block(const DotTile<D>& tile, index_t rows, bool one_vector) {
    const index_t tiles = (rows + kTileRows - 1) / kTileRows, longer = rows % tiles;
    if (one_vector) {
        multiply_dot_rows<D, 1>(rows / tiles, tile, longer, tiles);
    } else {
        multiply_dot_rows<D, kTileVectors>(rows / tiles, tile, longer, tiles);
    }
}

// One panel of weights, chunk by chunk.
template <class D>
inline void multiply_dot_panel(DotTile<D> tile, index_t segments, index_t length, index_t rows, bool one_vector) {
    constexpr index_t kChunk = kDotChunkBytes / (kTileCols * static_cast<index_t>(sizeof(typename D::Weight)));
    const index_t part = even_part(length, kChunk, D::kUnit);
    const index_t segments_each = part < length ? 1 : (kChunk / length < segments ? kChunk / length : segments);
    const typename D::Operand* const a = tile.a;
    for (index_t segment = 0, step = 0; segment < segments;) {
        tile.segments = at_most(segments_each, segments - segment);
        tile.steps = at_most(part, length - step);
        tile.a = a + step;
        multiply_dot_block(tile, rows, one_vector);
        tile.accumulate = true;
        tile.b += tile.segments * tile.steps * kTileCols;
        step += tile.steps;
        if (step < length) continue;
        step = 0;
        segment += tile.segments;
        tile.offsets += tile.segments;
    }
}

}  // namespace
}  // namespace resfuse
