// The products of the exact F(4x4, 3x3), a matrix for each frequency.
#pragma once

#include "kernels/int8/gemm.h"
#include "kernels/winograd/args.h"

namespace resfuse {
namespace {

void int8_winograd_products(const WinogradProductsArgs& w) {
    const index_t offset = 0;
    const auto* const v = static_cast<const std::int16_t*>(w.v);
    const auto* const weights = static_cast<const std::int16_t*>(w.weights);
    for (index_t f = 0; f < w.frequencies; ++f) {
        const index_t rows = w.end[f] - w.begin[f];
        if (rows <= 0) continue;
        multiply_dot_panel<Words>(
            {.a = v + f * w.v_frequency + w.begin[f] * w.depth,
             .lda = w.depth,
             .offsets = &offset,
             .b = weights + w.matrix[f] * w.depth * kTileCols,
             .sums = reinterpret_cast<std::uint32_t*>(w.m) + f * w.m_frequency + w.begin[f] * kTileCols,
             .accumulate = false},
            1, w.depth, rows, w.cols <= kVectorFloats);
    }
}

}  // namespace
}  // namespace resfuse
