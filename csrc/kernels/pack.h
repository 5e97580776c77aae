// Packing of direct-convolution and linear weights into panels of kTileCols output channels.
#pragma once

#include "kernels/gemm.h"

namespace resfuse {
namespace {

void pack_direct(const PackPanelArgs& g) {
    float* packed = g.packed;
    for (index_t r = 0; r < g.kernel_h; ++r)
        for (index_t s = 0; s < g.kernel_w; ++s)
            for (index_t c = 0; c < g.channels; ++c, packed += kTileCols) {
                const float* w = g.weight + g.first_k * g.stride_k + c * g.stride_c + r * g.stride_h + s * g.stride_w;
                for (index_t k = 0; k < g.cols; ++k) packed[k] = w[k * g.stride_k];
                for (index_t k = g.cols; k < kTileCols; ++k) packed[k] = 0.0f;
            }
}

}  // namespace
}  // namespace resfuse
