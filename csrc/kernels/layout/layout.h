// Copies a window of an image with any strides into a dense, zero-padded NHWC band.
#pragma once

#include "kernels/layout/args.h"
#include "kernels/layout/transpose.h"

namespace resfuse {
namespace {

inline void fill_floats(float* p, index_t n, float value) {
    index_t i = 0;
    for (; i + kVectorFloats <= n; i += kVectorFloats) store(p + i, broadcast(value));
    for (; i < n; ++i) p[i] = value;
}

inline void copy_floats(float* to, const float* from, index_t n) {
    index_t i = 0;
    for (; i + kVectorFloats <= n; i += kVectorFloats) store(to + i, load(from + i));
    store_first(to + i, load_first(from + i, n - i), n - i);
}

// Three planes to interleaved pixels, the layout of every RGB stem.
inline void interleave3(float* to, const float* from, index_t stride_c, index_t pixels) {
    const float *r = from, *g = from + stride_c, *b = from + 2 * stride_c;
    for (index_t x = 0; x < pixels; ++x) {
        to[3 * x] = r[x];
        to[3 * x + 1] = g[x];
        to[3 * x + 2] = b[x];
    }
}

inline void copy_pixels(const BandArgs& g, float* to, const float* from, index_t pixels) {
    if (g.stride_c == 1 && g.stride_w == g.channels && g.pixel == g.channels) {
        copy_floats(to, from, pixels * g.channels);
    } else if (g.stride_c == 1) {
        for (index_t x = 0; x < pixels; ++x) copy_floats(to + x * g.pixel, from + x * g.stride_w, g.channels);
    } else if (g.channels == 3 && g.pixel == 3 && g.stride_w == 1) {
        interleave3(to, from, g.stride_c, pixels);
    } else if (g.stride_w == 1) {
        transpose_floats({from, g.channels, pixels, g.stride_c, to, g.pixel});
    } else {
        for (index_t x = 0; x < pixels; ++x)
            for (index_t c = 0; c < g.channels; ++c) to[x * g.pixel + c] = from[x * g.stride_w + c * g.stride_c];
    }
}

template <class E>
void copy_band(const BandArgs& g) {
    const auto* const image = static_cast<const typename E::Storage*>(g.image);
    // Columns of the band left of, inside and right of the image.
    const index_t left = g.x0 >= 0 ? 0 : (-g.x0 < g.cols ? -g.x0 : g.cols);
    const index_t to_edge = g.width - g.x0;
    const index_t end = to_edge < left ? left : (to_edge < g.cols ? to_edge : g.cols);
    for (index_t i = 0; i < g.rows; ++i) {
        float* to = static_cast<float*>(g.band) + i * g.cols * g.pixel;
        const index_t y = g.y0 + i;
        if (y < 0 || y >= g.height) {
            fill_floats(to, g.cols * g.pixel, g.fill);
            continue;
        }
        fill_floats(to, left * g.pixel, g.fill);
        if (end > left)
            copy_pixels(g, to + left * g.pixel, image + y * g.stride_h + (g.x0 + left) * g.stride_w, end - left);
        fill_floats(to + end * g.pixel, (g.cols - end) * g.pixel, g.fill);
    }
}

}  // namespace
}  // namespace resfuse
