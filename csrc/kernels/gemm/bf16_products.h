// Products of bf16 numbers, two at a time (on Arm two rows by two columns of four): direct and 1x1 convolutions, linear
// layers. Rows are read as they lie in memory, weights are rounded to bf16, sums are fp32.
#pragma once

#include "kernels/gemm/dot_panel.h"
#include "kernels/gemm/gemm.h"

namespace resfuse {
namespace {

struct Bf16Units {
    using Operand = std::uint16_t;
    using Weight = std::uint16_t;
    using Lane = float;
    using Sum = Vec;
#if defined(RESFUSE_NEON)
    static constexpr index_t kUnit = 4;

    [[gnu::always_inline]] static Vec add_products(Vec sum, VecBits operands, VecBits weights) {
        return (Vec)vbfmmlaq_f32((float32x4_t)sum, (bfloat16x8_t)operands, (bfloat16x8_t)weights);
    }
#else
    static constexpr index_t kUnit = 2;

    [[gnu::always_inline]] static Vec add_products(Vec sum, VecBits operands, VecBits weights) {
        return _mm512_dpbf16_ps(sum, (__m512bh)operands, (__m512bh)weights);
    }
#endif
};

template <bool Residual>
inline void finish_whole_rows(const GemmArgs& g, const Results& to, const float* sums, index_t rows) {
    const Vec scale[2] = {load(to.scale), load(to.scale + kVectorFloats)};
    const Vec bias[2] = {load(to.bias), load(to.bias + kVectorFloats)};
    const Vec floor = broadcast(g.floor);
    auto* c = static_cast<std::uint16_t*>(to.c);
    const auto* residual = static_cast<const std::uint16_t*>(to.residual);
    for (const index_t ldc = g.ldc, ldr = g.ldr; rows > 0; --rows, sums += kTileCols, c += ldc, residual += ldr) {
        Vec v[2];
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            v[j] = load(sums + j * kVectorFloats) * scale[j] + bias[j];
            if constexpr (Residual) v[j] += Bf16::lanes(residual + j * kVectorFloats);
            v[j] = clamp_below(v[j], floor);
        }
        store_vector(c, Bf16::round_two(v[0], v[1]));
    }
}

// Outputs of rows whose sums lie kTileCols apart.
inline void finish_bf16_rows(const GemmArgs& g, const Results& to, const float* sums, index_t rows) {
    static_assert(kTileVectors == 2);
    if (to.cols < kTileCols || g.activation.kind != Activation::none)
        return finish_rows<Product<Form::plain, Bf16>>(g, to, sums, rows);
    if (to.residual) return finish_whole_rows<true>(g, to, sums, rows);
    finish_whole_rows<false>(g, to, sums, rows);
}

// Segments are whole units.
void bf16_dot_gemm(const GemmArgs& g) {
    constexpr index_t kBlock = kDotBlockTiles * kTileRows;
    alignas(64) float sums[kBlock * kTileCols];
    const index_t reduction = g.segments * g.segment_length, panels = (g.cols + kTileCols - 1) / kTileCols;
    const index_t blocks = (g.rows + kBlock - 1) / kBlock;
    for (index_t i = 0; i < blocks; ++i) {
        const index_t begin = g.rows * i / blocks, rows = g.rows * (i + 1) / blocks - begin;
        for (index_t panel = 0; panel < panels; ++panel) {
            const index_t column = panel * kTileCols, cols = at_most(g.cols - column, kTileCols);
            multiply_dot_panel<Bf16Units>({.a = static_cast<const std::uint16_t*>(g.a) + begin * g.lda,
                                           .lda = g.lda,
                                           .offsets = g.segment_offset,
                                           .b = static_cast<const std::uint16_t*>(g.b) + column * reduction,
                                           .sums = sums,
                                           .accumulate = false},
                                          g.segments, g.segment_length, rows, cols <= kVectorFloats);
            const auto* const residual = static_cast<const std::uint16_t*>(g.residual);
            finish_bf16_rows(g,
                             {.c = static_cast<std::uint16_t*>(g.c) + begin * g.ldc + column,
                              .residual = residual ? residual + begin * g.ldr + column : nullptr,
                              .scale = g.scale + column,
                              .bias = g.bias + column,
                              .cols = cols,
                              .rows = rows,
                              .column = column},
                             sums, rows);
        }
    }
}

// Rows of a packed fp32 panel, a unit of them into one row of units; in place.
void pack_bf16_units(float* panel, index_t depth) {
    constexpr index_t unit = Bf16Units::kUnit;
    auto* to = reinterpret_cast<unsigned char*>(panel);
    for (index_t row = 0; row < depth; row += unit) {
        Bf16::Storage units[kTileCols][unit];
        for (index_t i = 0; i < unit; ++i)
            for (index_t k = 0; k < kTileCols; k += kVectorFloats) {
                const HalfBits rounded = Bf16::round(load(panel + (row + i) * kTileCols + k));
                for (int lane = 0; lane < kVectorFloats; ++lane) units[k + lane][i] = rounded[lane];
            }
        std::memcpy(to, units, sizeof units);
        to += sizeof units;
    }
}

}  // namespace
}  // namespace resfuse
