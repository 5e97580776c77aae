// The products of Winograd convolutions: for each frequency, tiles times one panel of weights, as in gemm.h. The chunks
// are added up in M, which lies in L1 as well.
#pragma once

#include "kernels/gemm/args.h"
#include "kernels/gemm/gemm.h"
#include "kernels/winograd/args.h"

namespace resfuse {
namespace {

void winograd_products(const WinogradProductsArgs& w) {
    const index_t offset = 0;
    const float* const v = static_cast<const float*>(w.v);
    GemmArgs g{};
    g.lda = g.segment_length = w.depth;
    g.segment_offset = &offset;
    g.segments = 1;
    for (index_t f = 0; f < w.frequencies; ++f) {
        const index_t rows = w.end[f] - w.begin[f];
        if (rows <= 0) continue;
        const Panel panel{.a = v + f * w.v_frequency + w.begin[f] * w.depth,
                          .next_a = v + (f + 1) * w.v_frequency,
                          .b = static_cast<const float*>(w.weights) + w.matrix[f] * w.depth * kTileCols,
                          .rows = rows,
                          .chunk = w.chunk,
                          .accumulate = w.accumulate,
                          .sums = w.m + f * w.m_frequency + w.begin[f] * kTileCols,
                          .to = {.cols = w.cols}};
        multiply_panel<Product<Form::plain, Fp32>, Tile::sums>(g, panel);
    }
}

}  // namespace
}  // namespace resfuse
