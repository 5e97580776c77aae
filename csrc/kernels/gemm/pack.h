// Packing of direct-convolution and linear weights into panels of kTileCols output channels.
#pragma once

#include "kernels/gemm/args.h"
#include "kernels/gemm/gemm.h"
#include "kernels/simd/lanes.h"

namespace resfuse {
namespace {

// The output channels of a panel that vector j holds.
inline index_t columns_of(const PackPanelArgs& g, int j) {
    const index_t left = g.cols - j * kVectorFloats;
    return left < 0 ? 0 : at_most(left, kVectorFloats);
}

// One tap's weights, output channels next to each other in memory.
inline void pack_rows_of_outputs(const PackPanelArgs& g, const float* weight, float* packed) {
    for (index_t c = 0; c < g.channels; ++c)
        for (int j = 0; j < kTileVectors; ++j)
            store(packed + c * kTileCols + j * kVectorFloats,
                  load_first(weight + c * g.stride_c + j * kVectorFloats, columns_of(g, j)));
}

// Input channels next to each other: squares of weights are transposed.
inline void pack_rows_of_inputs(const PackPanelArgs& g, const float* weight, float* packed) {
    for (int j = 0; j < kTileVectors; ++j) {
        const index_t columns = columns_of(g, j);
        const float* const outputs = weight + j * kVectorFloats * g.stride_k;
        for (index_t c = 0; c < g.channels; c += kVectorFloats) {
            const index_t n = at_most(g.channels - c, kVectorFloats);
            Vec square[kVectorFloats];
#pragma GCC unroll 16
            for (int k = 0; k < kVectorFloats; ++k)
                square[k] = k < columns ? load_first(outputs + k * g.stride_k + c, n) : zero();
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < kVectorFloats; ++i) {
                if (i >= n) break;
                store(packed + (c + i) * kTileCols + j * kVectorFloats, square[i]);
            }
        }
    }
}

inline void pack_any(const PackPanelArgs& g, const float* weight, float* packed) {
    for (index_t c = 0; c < g.channels; ++c, weight += g.stride_c, packed += kTileCols) {
        for (index_t k = 0; k < g.cols; ++k) packed[k] = weight[k * g.stride_k];
        for (index_t k = g.cols; k < kTileCols; ++k) packed[k] = 0.0f;
    }
}

void pack_direct(const PackPanelArgs& g) {
    const auto pack_tap = g.stride_k == 1 ? pack_rows_of_outputs : g.stride_c == 1 ? pack_rows_of_inputs : pack_any;
    float* packed = g.packed;
    for (index_t r = 0; r < g.kernel_h; ++r)
        for (index_t s = 0; s < g.kernel_w; ++s, packed += g.channels * kTileCols)
            pack_tap(g, g.weight + g.first_k * g.stride_k + r * g.stride_h + s * g.stride_w, packed);
}

}  // namespace
}  // namespace resfuse
