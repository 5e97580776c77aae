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

void amx_int8_gemm(const Int8GemmArgs& g) {
    const GemmArgs& p = g.product;
    const index_t step_bytes = matrix_step_bytes(p.segment_length);
    if (step_bytes == 0) return int8_gemm(g);
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
    const index_t step_bytes = matrix_step_bytes(g.segment_length * kElementBytes[static_cast<int>(DType::bf16)]);
    if (step_bytes == 0) return bf16_dot_gemm(g);
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
                              .rows = rows},
                             sums, rows);
        });
}

}  // namespace
}  // namespace resfuse
