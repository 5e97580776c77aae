// Products of bytes: direct and 1x1 convolutions, linear layers. Sums are exact, so nothing depends on their order.
//
// As in gemm.h, a chunk of one panel of B stays in L1 while the register tiles of some rows pass by, and the sums of a
// block of rows stay there too.
#pragma once

#include "kernels/gemm/tile.h"
#include "kernels/int8/bytes.h"

namespace resfuse {
namespace {

constexpr index_t kInt8BlockTiles = 8;          // of rows, whose sums stay in L1
constexpr index_t kInt8ChunkBytes = 16 * 1024;  // of a panel, that stay there too

// Some rows of A times a chunk of a panel: sums, kTileCols a row, are begun or added to.
template <class D>
struct Int8Tile {
    const typename D::Operand* a;
    index_t lda;
    const index_t* offsets;
    index_t segments, steps;  // steps of each segment, whole units
    const typename D::Weight* b;
    std::uint32_t* sums;
    bool accumulate;
    const std::int32_t* offset = nullptr;  // what sums begin with; null: nothing
};

template <class D, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply_int8_tile(const Int8Tile<D>& tile) {
    // What is there already, or the same for all rows.
    static constexpr std::uint32_t kNothing[kTileCols] = {};
    const auto* const first = reinterpret_cast<const std::uint32_t*>(tile.offset);
    const std::uint32_t* const begin = tile.accumulate ? tile.sums : first ? first : kNothing;
    const index_t pitch = tile.accumulate ? kTileCols : 0;
    VecBits acc[Rows][Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) acc[i][j] = load_raw<VecBits>(begin + i * pitch + j * kVectorFloats);
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
[[gnu::always_inline]] inline void multiply_int8_tiles(Int8Tile<D>& tile, index_t tiles) {
    for (; tiles > 0; --tiles) {
        multiply_int8_tile<D, Rows, Vectors>(tile);
        tile.a += Rows * tile.lda;
        tile.sums += Rows * kTileCols;
    }
}

// The first `longer` tiles have Rows + 1 rows.
template <class D, int Rows, int Vectors>
[[gnu::noinline]] void multiply_int8_chunk(Int8Tile<D> tile, index_t longer, index_t tiles) {
    if constexpr (Rows < kTileRows) multiply_int8_tiles<D, Rows + 1, Vectors>(tile, longer);
    multiply_int8_tiles<D, Rows, Vectors>(tile, tiles - longer);
}

// `rows` of the shorter tiles.
template <class D, int Vectors, int Rows = kTileRows>
inline void multiply_int8_rows(index_t rows, const Int8Tile<D>& tile, index_t longer, index_t tiles) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return multiply_int8_rows<D, Vectors, Rows - 1>(rows, tile, longer, tiles);
    }
    multiply_int8_chunk<D, Rows, Vectors>(tile, longer, tiles);
}

// All rows of a block times a chunk, in tiles of about the same height.
template <class D>
inline void multiply_int8_block(const Int8Tile<D>& tile, index_t rows, bool one_vector) {
    const index_t tiles = (rows + kTileRows - 1) / kTileRows, longer = rows % tiles;
    if (one_vector) {
        multiply_int8_rows<D, 1>(rows / tiles, tile, longer, tiles);
    } else {
        multiply_int8_rows<D, kTileVectors>(rows / tiles, tile, longer, tiles);
    }
}

// One panel of weights, chunk by chunk.
template <class D>
inline void multiply_int8_panel(Int8Tile<D> tile, index_t segments, index_t length, index_t rows, bool one_vector) {
    constexpr index_t kChunk = kInt8ChunkBytes / (kTileCols * static_cast<index_t>(sizeof(typename D::Weight)));
    const index_t part = even_part(length, kChunk, D::kUnit);
    const index_t segments_each = part < length ? 1 : (kChunk / length < segments ? kChunk / length : segments);
    const typename D::Operand* const a = tile.a;
    for (index_t segment = 0, step = 0; segment < segments;) {
        tile.segments = at_most(segments_each, segments - segment);
        tile.steps = at_most(part, length - step);
        tile.a = a + step;
        multiply_int8_block(tile, rows, one_vector);
        tile.accumulate = true;
        tile.b += tile.segments * tile.steps * kTileCols;
        step += tile.steps;
        if (step < length) continue;
        step = 0;
        segment += tile.segments;
        tile.offsets += tile.segments;
    }
}

// Outputs of `cols` columns of rows whose sums lie kTileCols apart.
template <class W, class R>
inline void finish_int8_rows(const Int8GemmArgs& g, const std::uint32_t* sums, index_t rows, index_t cols,
                             index_t column, index_t first_row, const W& write, R) {
    const GemmArgs& p = g.product;
    const Vec factor = broadcast(g.epilogue.residual_factor);
    index_t at = first_row * p.ldc + column, add = first_row * p.ldr + column;
    const auto value = [&](const std::uint32_t* sum, Vec scale, Vec bias, index_t k, index_t n) {
        const Vec v = multiply_add(to_floats((VecInt)load_raw<VecBits>(sum + k)), scale, bias);
        if constexpr (std::is_same_v<R, NoReader>) {
            return v;
        } else {
            return multiply_add(R::at(p.residual, add + k, n), factor, v);
        }
    };
    static_assert(kTileVectors == 2);
    const Vec scale[2] = {load(p.scale + column), load(p.scale + column + kVectorFloats)};
    const Vec bias[2] = {load(p.bias + column), load(p.bias + column + kVectorFloats)};
    for (; rows > 0; --rows, sums += kTileCols, at += p.ldc, add += p.ldr) {
        if (cols == kTileCols) {
            write(p.c, at, value(sums, scale[0], bias[0], 0, kVectorFloats),
                  value(sums, scale[1], bias[1], kVectorFloats, kVectorFloats));
            continue;
        }
        for (int j = 0; j < 2 && j * kVectorFloats < cols; ++j) {
            const index_t k = j * kVectorFloats, n = at_most(cols - k, kVectorFloats);
            write(p.c, at + k, value(sums, scale[j], bias[j], k, n), n);
        }
    }
}

template <class D>
inline void int8_gemm_block(const Int8GemmArgs& g, index_t begin, index_t end) {
    alignas(64) std::uint32_t sums[kInt8BlockTiles * kTileRows * kTileCols];
    const GemmArgs& p = g.product;
    const index_t reduction = p.segments * p.segment_length, panels = (p.cols + kTileCols - 1) / kTileCols;
    for (index_t panel = 0; panel < panels; ++panel) {
        const index_t column = panel * kTileCols, cols = at_most(p.cols - column, kTileCols);
        multiply_int8_panel<D>({.a = static_cast<const typename D::Operand*>(p.a) + begin * p.lda,
                                .lda = p.lda,
                                .offsets = p.segment_offset,
                                .b = static_cast<const typename D::Weight*>(p.b) + column * reduction,
                                .sums = sums,
                                .accumulate = false,
                                .offset = g.offset + column},
                               p.segments, p.segment_length, end - begin, cols <= kVectorFloats);
        with_writer(g.epilogue.output, [&](const auto& write) {
            with_reader(p.residual != nullptr, g.epilogue.residual_type, [&](auto reader) {
                finish_int8_rows(g, sums, end - begin, cols, column, begin, write, reader);
            });
        });
    }
}

void int8_gemm(const Int8GemmArgs& g) {
    constexpr index_t block = kInt8BlockTiles * kTileRows;
    const index_t rows = g.product.rows, blocks = (rows + block - 1) / block;
    for (index_t i = 0; i < blocks; ++i) int8_gemm_block<DirectDot>(g, rows * i / blocks, rows * (i + 1) / blocks);
}

// [segments][units of a segment][kTileCols][unit]
void pack_int8(const PackInt8Args& g) {
    using D = DirectDot;
    auto* packed = static_cast<D::Weight*>(g.packed);
    for (index_t s = 0; s < g.segments; ++s)
        for (index_t step = 0; step < g.segment_length; step += D::kUnit)
            for (index_t k = 0; k < kTileCols; ++k)
                for (index_t i = 0; i < D::kUnit; ++i) {
                    const bool there = k < g.cols && step + i < g.segment_length;
                    *packed++ = there ? g.weights[k * g.depth + s * g.segment_length + step + i] : D::Weight{0};
                }
}

index_t int8_packed_bytes(index_t segments, index_t segment_length) {
    using D = DirectDot;
    const index_t units = (segment_length + D::kUnit - 1) / D::kUnit;
    return segments * units * D::kUnit * kTileCols * static_cast<index_t>(sizeof(D::Weight));
}

}  // namespace
}  // namespace resfuse
