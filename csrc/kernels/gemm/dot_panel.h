// Rows times a panel of units of small operands, in tiles of dot_tile.h.
//
// As in gemm.h, a chunk of one panel of B stays in L1 while the register tiles of some rows pass by, and the sums of a
// block of rows stay there too.
#pragma once

#if defined(RESFUSE_NEON)
#include "kernels/gemm/neon_dot_tile.h"
#else
#include "kernels/gemm/broadcast_dot_tile.h"
#endif

namespace resfuse {
namespace {

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
