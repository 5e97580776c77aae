// Products of rows and panels by AMX. A register tile is two tiles of rows times a panel of 32 columns: one load a
// product, and there are as many cycles for it.
//
// A chunk of one panel stays in L1 while the tiles of some rows pass by. Where the reduction takes several chunks, the
// sums of these rows wait in L1 and L2; else a tile's outputs are made while the next tile is multiplied.
#pragma once

#include "kernels/amx/tiles.h"
#include "kernels/gemm/args.h"
#include "kernels/gemm/tile.h"

namespace resfuse {
namespace {

static_assert(kTileCols * 4 == 2 * kMatrixBytes);
constexpr index_t kUnitBytes = 4, kUnitRowBytes = 2 * kMatrixBytes;  // of a row; of a panel
constexpr index_t kMatrixSums = kMatrixRows * kTileCols;             // of a tile
constexpr index_t kTilesAtOnce = 32, kTilesWithSums = 8;             // of rows, while a panel stays
constexpr index_t kMatrixChunkBytes = 24 * 1024;                     // of a panel

// Bytes of a segment that a step takes, the same in all steps; 0: the segment cannot be cut so.
constexpr index_t matrix_step_bytes(index_t segment_bytes) {
    constexpr index_t kFewest = kMatrixBytes / 2;
    const index_t fewest = (segment_bytes + kMatrixBytes - 1) / kMatrixBytes;
    for (index_t steps = fewest; steps == fewest || segment_bytes >= steps * kFewest; ++steps)
        if (segment_bytes % (steps * kUnitBytes) == 0) return segment_bytes / steps;
    return 0;
}

// A tile of rows. Those of a line have the same height, so that the last one may begin among the rows of the one
// before: it skips these.
struct RowTile {
    const std::byte* a;
    index_t line, row, skip;
};

// The tiles of all lines, some at a time.
class RowTiles {
  public:
    explicit RowTiles(const GemmArgs& g, index_t operand_bytes)
        : a_(static_cast<const std::byte*>(g.a)),
          row_bytes_(g.lda * operand_bytes),
          line_bytes_(g.line_a * operand_bytes),
          rows_(g.rows),
          per_line_((g.rows + kMatrixRows - 1) / kMatrixRows),
          height_((g.rows + per_line_ - 1) / per_line_),
          left_(per_line_ * g.lines) {}

    index_t height() const { return height_; }
    index_t row_bytes() const { return row_bytes_; }
    index_t left() const { return left_; }

    RowTile next() {
        const index_t begin = at_ * height_, row = at_most(begin, rows_ - height_);
        const RowTile tile{a_ + line_ * line_bytes_ + row * row_bytes_, line_, row, begin - row};
        --left_;
        if (++at_ == per_line_) {
            at_ = 0;
            ++line_;
        }
        return tile;
    }

  private:
    const std::byte* a_;
    index_t row_bytes_, line_bytes_, rows_, per_line_, height_, left_;
    index_t line_ = 0, at_ = 0;
};

// A part of the reduction.
struct MatrixChunk {
    const index_t* offsets;  // of segments, in operands
    index_t segments, steps, step_bytes, operand_bytes;
    index_t begin;  // of each segment, in bytes
    const std::byte* b;
    bool one_vector;
};

// Sums of one or two tiles of rows += their product with a chunk.
template <class D, int Tiles, int Vectors>
[[gnu::always_inline]] inline void multiply_matrix_chunk(const MatrixChunk& chunk, const RowTile* tiles,
                                                         index_t row_bytes) {
    const index_t step_bytes = chunk.step_bytes, weight_bytes = step_bytes / kUnitBytes * kUnitRowBytes;
    const std::byte* b = chunk.b;
    for (const index_t *offset = chunk.offsets, *const end = offset + chunk.segments; offset < end; ++offset) {
        const index_t from = *offset * chunk.operand_bytes + chunk.begin;
        const std::byte *first = tiles[0].a + from, *second = tiles[Tiles - 1].a + from;
        for (index_t left = chunk.steps; left > 0; --left) {
            load_tile<6>(b, kUnitRowBytes);
            load_tile<4>(first, row_bytes);
            D::template multiply<0, 4, 6>();
            if constexpr (Vectors > 1) {
                load_tile<7>(b + kMatrixBytes, kUnitRowBytes);
                D::template multiply<1, 4, 7>();
            }
            if constexpr (Tiles > 1) {
                load_tile<5>(second, row_bytes);
                D::template multiply<2, 5, 6>();
                if constexpr (Vectors > 1) D::template multiply<3, 5, 7>();
            }
            first += step_bytes;
            second += step_bytes;
            b += weight_bytes;
        }
    }
}

// The same, from sums in memory (some bytes between their rows) to others.
template <class D, int Tiles, int Vectors>
[[gnu::noinline]] void multiply_matrix_tiles(const MatrixChunk& chunk, const RowTile* tiles, index_t row_bytes,
                                             const void* begin, index_t begin_pitch, void* sums) {
    constexpr index_t kPitch = kTileCols * 4;
    const std::byte* const from = static_cast<const std::byte*>(begin);
    std::byte* const to = static_cast<std::byte*>(sums);
    const index_t next = kMatrixRows * begin_pitch;
    load_tile<0>(from, begin_pitch);
    if constexpr (Vectors > 1) load_tile<1>(from + kMatrixBytes, begin_pitch);
    if constexpr (Tiles > 1) {
        load_tile<2>(from + next, begin_pitch);
        if constexpr (Vectors > 1) load_tile<3>(from + next + kMatrixBytes, begin_pitch);
    }
    multiply_matrix_chunk<D, Tiles, Vectors>(chunk, tiles, row_bytes);
    store_tile<0>(to, kPitch);
    if constexpr (Vectors > 1) store_tile<1>(to + kMatrixBytes, kPitch);
    if constexpr (Tiles > 1) {
        std::byte* const other = to + kMatrixRows * kPitch;
        store_tile<2>(other, kPitch);
        if constexpr (Vectors > 1) store_tile<3>(other + kMatrixBytes, kPitch);
    }
}

template <class D>
inline void multiply_matrix_pair(const MatrixChunk& chunk, const RowTile* tiles, index_t count, index_t row_bytes,
                                 const void* begin, index_t begin_pitch, void* sums) {
    if (chunk.one_vector) {
        if (count > 1) return multiply_matrix_tiles<D, 2, 1>(chunk, tiles, row_bytes, begin, begin_pitch, sums);
        return multiply_matrix_tiles<D, 1, 1>(chunk, tiles, row_bytes, begin, begin_pitch, sums);
    }
    if (count > 1) return multiply_matrix_tiles<D, 2, 2>(chunk, tiles, row_bytes, begin, begin_pitch, sums);
    multiply_matrix_tiles<D, 1, 2>(chunk, tiles, row_bytes, begin, begin_pitch, sums);
}

// Panels times the rows of all lines. Sums begin with `offset`, a panel's after the other, or with zero (null). Calls
// finish(tile, rows, column, cols, sums) for the rows of each tile and the columns of each panel; sums of a row lie
// kTileCols from those of the one before.
template <class D, class Lane, class Finish>
inline void multiply_matrices(const GemmArgs& g, index_t step_bytes, const Lane* offset, const Finish& finish) {
    alignas(64) static constexpr Lane kNothing[kTileCols] = {};
    alignas(64) Lane sums[kTilesWithSums * kMatrixSums];
    constexpr index_t kOperandBytes = sizeof(typename D::Operand);
    RowTiles rows(g, kOperandBytes);
    const TileRegisters registers(rows.height(), step_bytes);
    const index_t segment_bytes = g.segment_length * kOperandBytes;
    constexpr index_t kChunk = kMatrixChunkBytes / kTileCols;  // bytes of a row
    const index_t part = even_part(segment_bytes, kChunk, step_bytes);
    const index_t segments_each = part < segment_bytes ? 1 : at_most(kChunk / segment_bytes, g.segments);
    const bool one_chunk = segments_each == g.segments && part >= segment_bytes;
    const index_t panel_bytes = g.segments * segment_bytes / kUnitBytes * kUnitRowBytes;
    while (rows.left() > 0) {
        RowTile tiles[kTilesAtOnce];
        const index_t count = at_most(one_chunk ? kTilesAtOnce : kTilesWithSums, rows.left());
        for (index_t i = 0; i < count; ++i) tiles[i] = rows.next();
        for (index_t column = 0; column < g.cols; column += kTileCols) {
            const index_t cols = at_most(g.cols - column, kTileCols);
            const Lane* const first = offset ? offset + column : kNothing;
            MatrixChunk chunk{.offsets = g.segment_offset,
                              .segments = segments_each,
                              .steps = part / step_bytes,
                              .step_bytes = step_bytes,
                              .operand_bytes = kOperandBytes,
                              .begin = 0,
                              .b = static_cast<const std::byte*>(g.b) + column / kTileCols * panel_bytes,
                              .one_vector = cols <= kVectorFloats};
            bool begun = false;
            for (index_t segment = 0; segment < g.segments; begun = true) {
                chunk.segments = at_most(segments_each, g.segments - segment);
                chunk.steps = at_most(part, segment_bytes - chunk.begin) / step_bytes;
                const index_t end = chunk.begin + chunk.steps * step_bytes;
                const bool last = segment + chunk.segments == g.segments && end == segment_bytes;
                for (index_t i = 0; i < count; i += 2) {
                    Lane* const to = sums + (one_chunk ? 0 : i * kMatrixSums);
                    const index_t some = at_most(count - i, 2);
                    multiply_matrix_pair<D>(chunk, tiles + i, some, rows.row_bytes(), begun ? to : first,
                                            begun ? kUnitRowBytes : 0, to);
                    if (!last) continue;
                    for (index_t t = 0; t < some; ++t)
                        finish(tiles[i + t], rows.height() - tiles[i + t].skip, column, cols,
                               to + t * kMatrixSums + tiles[i + t].skip * kTileCols);
                }
                chunk.b += chunk.segments * chunk.steps * (step_bytes / kUnitBytes * kUnitRowBytes);
                chunk.begin = end;
                if (end < segment_bytes) continue;
                chunk.begin = 0;
                segment += chunk.segments;
                chunk.offsets += chunk.segments;
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
