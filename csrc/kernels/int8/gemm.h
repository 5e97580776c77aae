// Products of bytes: direct and 1x1 convolutions, linear layers. Sums are exact, so nothing depends on their order.
#pragma once

#include "kernels/gemm/dot_panel.h"
#include "kernels/int8/bytes.h"

namespace resfuse {
namespace {

// Outputs of `cols` columns of rows whose sums lie kTileCols apart, `at` and `add` elements from the first output and
// from the first residual.
template <class W, class R>
inline void finish_int8_rows(const Int8GemmArgs& g, const std::uint32_t* sums, index_t rows, index_t cols,
                             index_t column, index_t at, index_t add, const W& write, R) {
    const GemmArgs& p = g.product;
    const Vec factor = broadcast(g.epilogue.residual_factor);
    static_assert(kTileVectors == 2);
    const Vec scale[2] = {load(p.scale + column), load(p.scale + column + kVectorFloats)};
    const Vec bias[2] = {load(p.bias + column), load(p.bias + column + kVectorFloats)};
    // Vector j of a row, whose first residual lies `from` elements from that of all.
    const auto value = [&](const std::uint32_t* sum, index_t from, int j, index_t n = kVectorFloats) {
        const index_t k = j * kVectorFloats;
        const Vec v = multiply_add(to_floats((VecInt)load_raw<VecBits>(sum + k)), scale[j], bias[j]);
        if constexpr (std::is_same_v<R, NoReader>) {
            return v;
        } else {
            return multiply_add(R::at(p.residual, from + k, n), factor, v);
        }
    };
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<W, Writer<DType::u8>>) {
        if (cols == kTileCols && write.saturates()) {
            auto* const to = static_cast<std::uint8_t*>(p.c);
            const index_t ldc = p.ldc, ldr = p.ldr;
            for (; rows >= 2; rows -= 2, sums += 2 * kTileCols, at += 2 * ldc, add += 2 * ldr) {
                VecInt v[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    const int row = i / 2;
                    v[i] = write.wide_byte(value(sums + row * kTileCols, add + row * ldr, i % 2));
                }
                store_two_rows(to + at, to + at + ldc, v);
            }
        }
    }
#endif
    for (; rows > 0; --rows, sums += kTileCols, at += p.ldc, add += p.ldr) {
        if (cols == kTileCols) {
            write(p.c, at, value(sums, add, 0), value(sums, add, 1));
            continue;
        }
        for (int j = 0; j < 2 && j * kVectorFloats < cols; ++j) {
            const index_t k = j * kVectorFloats, n = at_most(cols - k, kVectorFloats);
            write(p.c, at + k, value(sums, add, j, n), n);
        }
    }
}

template <class D>
inline void int8_gemm_block(const Int8GemmArgs& g, index_t begin, index_t end) {
    alignas(64) std::uint32_t sums[kDotBlockTiles * kTileRows * kTileCols];
    const GemmArgs& p = g.product;
    const index_t reduction = p.segments * p.segment_length, panels = (p.cols + kTileCols - 1) / kTileCols;
    for (index_t panel = 0; panel < panels; ++panel) {
        const index_t column = panel * kTileCols, cols = at_most(p.cols - column, kTileCols);
        multiply_dot_panel<D>(
            {.a = static_cast<const typename D::Operand*>(p.a) + begin * p.lda,
             .lda = p.lda,
             .offsets = p.segment_offset,
             .b = static_cast<const typename D::Weight*>(p.b) + column * reduction,
             .sums = sums,
             .accumulate = false,
             .offset = g.offset ? reinterpret_cast<const std::uint32_t*>(g.offset) + column : nullptr},
            p.segments, p.segment_length, end - begin, cols <= kVectorFloats);
        with_writer(g.epilogue.output, [&](const auto& write) {
            with_reader(p.residual != nullptr, g.epilogue.residual_type, [&](auto reader) {
                finish_int8_rows(g, sums, end - begin, cols, column, begin * p.ldc + column, begin * p.ldr + column,
                                 write, reader);
            });
        });
    }
}

void int8_gemm(const Int8GemmArgs& g) {
    constexpr index_t block = kDotBlockTiles * kTileRows;
    const index_t rows = g.product.rows, blocks = (rows + block - 1) / block;
    for (index_t i = 0; i < blocks; ++i) int8_gemm_block<DirectDot>(g, rows * i / blocks, rows * (i + 1) / blocks);
}

// [segments][units of a padded segment][kTileCols][unit]
void pack_int8(const PackInt8Args& g) {
    using D = DirectDot;
    auto* packed = static_cast<D::Weight*>(g.packed);
    for (index_t s = 0; s < g.segments; ++s)
        for (index_t step = 0; step < g.padded; step += D::kUnit)
            for (index_t k = 0; k < kTileCols; ++k)
                for (index_t i = 0; i < D::kUnit; ++i) {
                    const bool there = k < g.cols && step + i < g.segment_length;
                    *packed++ = there ? g.weights[k * g.depth + s * g.segment_length + step + i] : D::Weight{0};
                }
}

index_t int8_packed_bytes(index_t depth) { return depth * kTileCols * static_cast<index_t>(sizeof(DirectDot::Weight)); }

}  // namespace
}  // namespace resfuse
