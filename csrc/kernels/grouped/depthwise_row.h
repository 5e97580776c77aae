// A row of a depthwise convolution, straight from rows with padding: each input pixel is loaded once for all the
// outputs that it is a tap of.
#pragma once

#include "kernels/activation/activation.h"
#include "kernels/grouped/grouped.h"

namespace resfuse {
namespace {

// What is known when the code is made: 0 for the width of a kernel, or for a stride, that is not.
template <int KernelWidth, int Stride, int Pixels>
[[gnu::always_inline]] inline void add_taps(const DepthwiseRowArgs& g, const float* row, const float* weight,
                                            Vec (&acc)[Pixels]) {
    if constexpr (KernelWidth > 0 && Stride > 0) {
        Vec w[KernelWidth];
#pragma GCC unroll 8
        for (int s = 0; s < KernelWidth; ++s) w[s] = load(weight + s * kVectorFloats);
#pragma GCC unroll 40
        for (int i = 0; i < (Pixels - 1) * Stride + KernelWidth; ++i, row += g.pixel) {
            const Vec x = load(row);
#pragma GCC unroll 8
            for (int s = 0; s < KernelWidth; ++s)
                if ((i - s) % Stride == 0 && i >= s && (i - s) / Stride < Pixels) acc[(i - s) / Stride] += x * w[s];
        }
    } else {
        const index_t step = g.window.stride_w * g.pixel;
        for (index_t s = 0; s < g.window.kernel_w; ++s, row += g.window.dilation_w * g.pixel) {
            const Vec w = load(weight + s * kVectorFloats);
#pragma GCC unroll 14
            for (int p = 0; p < Pixels; ++p) acc[p] += load(row + p * step) * w;
        }
    }
}

template <int KernelWidth, int Stride, int Pixels>
[[gnu::always_inline]] inline void depthwise_tile(const DepthwiseRowArgs& g, index_t channel, index_t first) {
    Vec acc[Pixels];
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) acc[p] = zero();
    const float* weight = g.weight + channel * g.window.kernel_h * g.window.kernel_w;
    const index_t from = first * (Stride > 0 ? Stride : g.window.stride_w) * g.pixel + channel;
    for (index_t r = 0; r < g.window.kernel_h; ++r, weight += g.window.kernel_w * kVectorFloats)
        add_taps<KernelWidth, Stride, Pixels>(g, g.rows[r] + from, weight, acc);
    const index_t lanes = at_most(kVectorFloats, g.channels - channel);
    const Vec scale = load_first(g.scale + channel, lanes), bias = load_first(g.bias + channel, lanes),
              floor = broadcast(g.floor);
    float* to = g.y + first * g.y_pixel + channel;
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p, to += g.y_pixel) {
        Vec v = acc[p] * scale + bias;
        if (g.residual) v += load_first(g.residual + (first + p) * g.residual_pixel + channel, lanes);
        store_first(to, clamp_below(v, floor), lanes);
    }
}

template <int KernelWidth, int Stride>
void depthwise_row_of(const DepthwiseRowArgs& g) {
    for (index_t c = 0; c < g.channels; c += kVectorFloats) {
        const auto tiles = [&]<int Pixels>(index_t x) {
            for (; x + Pixels <= g.width; x += Pixels) depthwise_tile<KernelWidth, Stride, Pixels>(g, c, x);
            return x;
        };
        index_t x = tiles.template operator()<kGroupedPixels>(0);
        x = tiles.template operator()<7>(x);
        x = tiles.template operator()<3>(x);
        tiles.template operator()<1>(x);
    }
}

template <int KernelWidth>
void depthwise_row_by_stride(const DepthwiseRowArgs& g) {
    if (g.window.stride_w == 1) return depthwise_row_of<KernelWidth, 1>(g);
    if (g.window.stride_w == 2) return depthwise_row_of<KernelWidth, 2>(g);
    depthwise_row_of<0, 0>(g);
}

// Reads whole vectors of the rows: what lies behind the last channel may be anything finite.
void depthwise_row(const DepthwiseRowArgs& g) {
    const bool dilated = g.window.dilation_w != 1;
    if (g.window.kernel_w == 3 && !dilated) {
        depthwise_row_by_stride<3>(g);
    } else if (g.window.kernel_w == 5 && !dilated) {
        depthwise_row_by_stride<5>(g);
    } else {
        depthwise_row_of<0, 0>(g);
    }
    if (g.activation.kind != Activation::none) activate<Fp32>({g.activation, g.y, g.width, g.y_pixel, g.channels});
}

}  // namespace
}  // namespace resfuse
