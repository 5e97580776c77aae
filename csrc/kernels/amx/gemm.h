// Matrix products of bytes and of bf16 by AMX, from the panels of the dot products (dot_tile.h), which do what cannot
// be cut into its steps.
#pragma once

#include "kernels/amx/products.h"
#include "kernels/gemm/bf16_products.h"
#include "kernels/int8/gemm.h"

namespace resfuse {
namespace {

// Where the rows that a tile finishes lie, in elements of what they are written to or what is added.
inline index_t first_output(const GemmArgs& g, const RowTile& tile, index_t column) {
    return tile.line * g.line_c + (tile.row + tile.skip) * g.ldc + column;
}
inline index_t first_residual(const GemmArgs& g, const RowTile& tile, index_t column) {
    return tile.line * g.line_r + (tile.row + tile.skip) * g.ldr + column;
}

// Calls f(product) for each line of a product; its operands, outputs and residuals have so many bytes each.
template <class F>
inline void for_each_line(GemmArgs g, index_t operand_bytes, index_t output_bytes, index_t residual_bytes, F f) {
    const index_t lines = g.lines;
    g.lines = 1;
    for (index_t i = 0; i < lines; ++i) {
        f(g);
        g.a = static_cast<const std::byte*>(g.a) + g.line_a * operand_bytes;
        g.c = static_cast<std::byte*>(g.c) + g.line_c * output_bytes;
        if (g.residual) g.residual = static_cast<const std::byte*>(g.residual) + g.line_r * residual_bytes;
    }
}

constexpr index_t bytes_of(DType type) { return kElementBytes[static_cast<int>(type)]; }

void amx_int8_gemm(const Int8GemmArgs& g) {
    const GemmArgs& p = g.product;
    const index_t step_bytes = matrix_step_bytes(p.segment_length);
    if (step_bytes == 0)
        return for_each_line(p, 1, bytes_of(g.epilogue.output.type), bytes_of(g.epilogue.residual_type),
                             [&](const GemmArgs& line) { int8_gemm({line, g.offset, g.epilogue}); });
    const auto* const offset = reinterpret_cast<const std::uint32_t*>(g.offset);
    with_writer(g.epilogue.output, [&](const auto& write) {
        with_reader(p.residual != nullptr, g.epilogue.residual_type, [&](auto reader) {
            const auto finish = [&](const RowTile& tile, index_t rows, index_t column, index_t cols,
                                    const std::uint32_t* sums) {
                finish_int8_rows(g, sums, rows, cols, column, first_output(p, tile, column),
                                 first_residual(p, tile, column), write, reader);
            };
            multiply_matrices<MatrixBytes>(p, step_bytes, offset, finish);
        });
    });
}

// Sums of subnormal numbers, and of products with them, are zero.
void amx_bf16_gemm(const GemmArgs& g) {
    constexpr index_t kBytes = bytes_of(DType::bf16);
    const index_t step_bytes = matrix_step_bytes(g.segment_length * kBytes);
    if (step_bytes == 0) return for_each_line(g, kBytes, kBytes, kBytes, bf16_dot_gemm);
    auto* const c = static_cast<std::uint16_t*>(g.c);
    const auto* const residual = static_cast<const std::uint16_t*>(g.residual);
    multiply_matrices<MatrixBf16, float>(
        g, step_bytes, nullptr,
        [&](const RowTile& tile, index_t rows, index_t column, index_t cols, const float* sums) {
            finish_bf16_rows(g,
                             {.c = c + first_output(g, tile, column),
                              .residual = residual ? residual + first_residual(g, tile, column) : nullptr,
                              .scale = g.scale + column,
                              .bias = g.bias + column,
                              .cols = cols,
                              .rows = rows,
                              .column = column},
                             sums, rows);
        });
}

}  // namespace
}  // namespace resfuse
