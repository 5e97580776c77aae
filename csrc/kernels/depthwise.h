// Depthwise convolution, vectorised over the channels; a tile of output pixels shares each weight load.
#pragma once

#include "kernels/simd.h"

namespace resfuse {
namespace {

template <int Pixels>
inline void depthwise_tile(const DepthwiseArgs& g, index_t oy, index_t ox, index_t c, index_t n) {
    Vec acc[Pixels] = {};
    for (index_t r = 0; r < g.kernel_h; ++r) {
        const index_t iy = oy * g.stride_h - g.pad_top + r * g.dilation_h;
        if (iy < 0 || iy >= g.image.height) continue;
        const float* row = g.image.data + iy * g.image.row + c;
        for (index_t s = 0; s < g.kernel_w; ++s) {
            const Vec w = load_first(g.weight + (r * g.kernel_w + s) * g.channels + c, n);
            for (int p = 0; p < Pixels; ++p) {
                const index_t ix = (ox + p) * g.stride_w - g.pad_left + s * g.dilation_w;
                if (ix < 0 || ix >= g.image.width) continue;
                acc[p] += load_first(row + ix * g.image.pixel, n) * w;
            }
        }
    }
    const Vec scale = load_first(g.scale + c, n), bias = load_first(g.bias + c, n);
    for (int p = 0; p < Pixels; ++p) {
        const index_t at = (oy * g.out_width + ox + p) * g.channels + c;
        Vec v = acc[p] * scale + bias;
        if (g.residual) v += load_first(g.residual + at, n);
        store_first(g.y + at, clamp_below(v, broadcast(g.floor)), n);
    }
}

void depthwise(const DepthwiseArgs& g) {
    constexpr int kPixels = 4;
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy)
        for (index_t c = 0; c < g.channels; c += kVectorFloats) {
            const index_t n = g.channels - c < kVectorFloats ? g.channels - c : kVectorFloats;
            index_t ox = 0;
            for (; ox + kPixels <= g.out_width; ox += kPixels) depthwise_tile<kPixels>(g, oy, ox, c, n);
            for (; ox < g.out_width; ++ox) depthwise_tile<1>(g, oy, ox, c, n);
        }
}

}  // namespace
}  // namespace resfuse
