// Products of rows and panels by AMX. A register tile is two tiles of rows times a panel of 32 columns: one load a
// product, and there are as many cycles for it. The whole reduction stays in registers: sums that wait in memory cost
// more than reading a panel from L2 for each pair of tiles.
#pragma once

#include "kernels/amx/tiles.h"
#include "kernels/gemm/args.h"
#include "kernels/gemm/tile.h"

namespace resfuse {
namespace {

static_assert(kTileCols * 4 == 2 * kMatrixBytes);
constexpr index_t kUnitBytes = 4, kUnitRowBytes = 2 * kMatrixBytes;  // of a row; of a panel
constexpr index_t kMatrixSums = kMatrixRows * kTileCols;             // of a tile
constexpr index_t kTilesAtOnce = 32;                                 // of rows, that pass by all panels together

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

// The reduction, in steps of the same length.
struct Reduction {
    const index_t* offsets;  // of segments, in operands
    index_t segments, steps, step_bytes, operand_bytes;
};

// Sums of one or two tiles of rows: `begin`, the same for all rows, or zero (null), and their product with a panel.
template <class D, int Tiles, int Vectors>
[[gnu::noinline]] void multiply_matrix_tiles(const Reduction& reduction, const RowTile* tiles, index_t row_bytes,
                                             const std::byte* b, const std::byte* begin, std::byte* sums) {
    if (begin) {
        load_tile<0>(begin, 0);
        if constexpr (Tiles > 1) load_tile<2>(begin, 0);
        if constexpr (Vectors > 1) load_tile<1>(begin + kMatrixBytes, 0);
        if constexpr (Tiles > 1 && Vectors > 1) load_tile<3>(begin + kMatrixBytes, 0);
    } else {
        clear_tile<0>();
        if constexpr (Tiles > 1) clear_tile<2>();
        if constexpr (Vectors > 1) clear_tile<1>();
        if constexpr (Tiles > 1 && Vectors > 1) clear_tile<3>();
    }
    const index_t step_bytes = reduction.step_bytes, weight_bytes = step_bytes / kUnitBytes * kUnitRowBytes;
    for (index_t segment = 0; segment < reduction.segments; ++segment) {
        const index_t offset = reduction.offsets[segment] * reduction.operand_bytes;
        const std::byte *first = tiles[0].a + offset, *second = tiles[Tiles - 1].a + offset;
        for (index_t left = reduction.steps; left > 0; --left) {
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
    constexpr index_t kPitch = kTileCols * 4;
    std::byte* const other = sums + kMatrixRows * kPitch;
    store_tile<0>(sums, kPitch);
    if constexpr (Vectors > 1) store_tile<1>(sums + kMatrixBytes, kPitch);
    if constexpr (Tiles > 1) store_tile<2>(other, kPitch);
    if constexpr (Tiles > 1 && Vectors > 1) store_tile<3>(other + kMatrixBytes, kPitch);
}

template <class D, int Vectors>
inline void multiply_matrix_pair(const Reduction& reduction, const RowTile* tiles, index_t count, index_t row_bytes,
                                 const std::byte* b, const std::byte* begin, std::byte* sums) {
    if (count > 1) return multiply_matrix_tiles<D, 2, Vectors>(reduction, tiles, row_bytes, b, begin, sums);
    multiply_matrix_tiles<D, 1, Vectors>(reduction, tiles, row_bytes, b, begin, sums);
}

// Panels times the rows of all lines. Sums begin with `offset`, a panel's after the other, or with zero (null). Calls
// finish(tile, rows, column, cols, sums) for the rows of each tile and the columns of each panel; sums of a row lie
// kTileCols from those of the one before.
template <class D, class Lane, class Finish>
inline void multiply_matrices(const GemmArgs& g, index_t step_bytes, const Lane* offset, const Finish& finish) {
    alignas(64) Lane sums[2 * kMatrixSums];
    constexpr index_t kOperandBytes = sizeof(typename D::Operand);
    auto* const to = reinterpret_cast<std::byte*>(sums);
    RowTiles rows(g, kOperandBytes);
    const TileRegisters registers(rows.height(), step_bytes);
    const index_t segment_bytes = g.segment_length * kOperandBytes;
    const Reduction reduction{g.segment_offset, g.segments, segment_bytes / step_bytes, step_bytes, kOperandBytes};
    const index_t panel_bytes = g.segments * segment_bytes / kUnitBytes * kUnitRowBytes;
    while (rows.left() > 0) {
        RowTile tiles[kTilesAtOnce];
        const index_t count = at_most(kTilesAtOnce, rows.left());
        for (index_t i = 0; i < count; ++i) tiles[i] = rows.next();
        const std::byte* b = static_cast<const std::byte*>(g.b);
        for (index_t column = 0; column < g.cols; column += kTileCols, b += panel_bytes) {
            const index_t cols = at_most(g.cols - column, kTileCols);
            const auto* const first = reinterpret_cast<const std::byte*>(offset ? offset + column : nullptr);
            for (index_t i = 0; i < count; i += 2) {
                const index_t some = at_most(count - i, 2);
                if (cols > kVectorFloats) {
                    multiply_matrix_pair<D, 2>(reduction, tiles + i, some, rows.row_bytes(), b, first, to);
                } else {
                    multiply_matrix_pair<D, 1>(reduction, tiles + i, some, rows.row_bytes(), b, first, to);
                }
                for (index_t t = i; t < i + some; ++t)
                    finish(tiles[t], rows.height() - tiles[t].skip, column, cols,
                           sums + (t - i) * kMatrixSums + tiles[t].skip * kTileCols);
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
