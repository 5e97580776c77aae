// Max-pooling over NHWC images, vectorised over the channels.
#pragma once

#include "kernels/pool/args.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

// The taps of a window that lie inside the image: [begin, end), and the position of the first.
struct Taps {
    index_t begin, end, first;
};
inline Taps taps_inside(index_t start, index_t kernel, index_t dilation, index_t size) {
    const index_t begin = start < 0 ? (-start + dilation - 1) / dilation : 0;
    const index_t fit = size <= start ? 0 : (size - start + dilation - 1) / dilation;
    return {begin, fit < kernel ? fit : kernel, start + begin * dilation};
}

// One vector of one output, with every care for NaN.
template <class E>
inline Vec max_of_taps(const MaxPoolArgs& g, const typename E::Storage* window, index_t rows, index_t cols, index_t n) {
    Vec best = broadcast(-__builtin_inff());
    for (index_t r = 0; r < rows; ++r) {
        const auto* p = window + r * g.window.dilation_h * g.image.row;
        for (index_t s = 0; s < cols; ++s, p += g.window.dilation_w * g.image.pixel)
            best = max_keep_nan(best, E::load_first(p, n));
    }
    return best;
}

// Whole windows of 3 x 3, the pool of every ResNet stem: two operations a tap. A sum over the taps is NaN wherever one
// of them is (or where infinities of both signs meet); such vectors are done again with care.
template <class E>
inline void max_pool_3x3(const MaxPoolArgs& g, const typename E::Storage* window, typename E::Storage* y) {
    index_t c = 0;
    for (; c + kVectorFloats <= g.channels; c += kVectorFloats) {
        Vec best = E::load(window + c), sum = best;
#pragma GCC unroll 3
        for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
            for (int s = 0; s < 3; ++s) {
                if (r == 0 && s == 0) continue;
                const Vec v = E::load(window + r * g.image.row + s * g.image.pixel + c);
                best = clamp_below(best, v);
                sum += v;
            }
        if (any_nan(sum)) best = max_of_taps<E>(g, window + c, 3, 3, kVectorFloats);
        E::store(y + c, best);
    }
    if (c < g.channels) E::store_first(y + c, max_of_taps<E>(g, window + c, 3, 3, g.channels - c), g.channels - c);
}

template <class E>
void max_pool(const MaxPoolArgs& g) {
    using Storage = typename E::Storage;
    const bool dense_3x3 =
        g.window.kernel_h == 3 && g.window.kernel_w == 3 && g.window.dilation_h == 1 && g.window.dilation_w == 1;
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy) {
        const Taps rows = taps_inside(oy * g.window.stride_h - g.window.pad_top, g.window.kernel_h, g.window.dilation_h,
                                      g.image.height);
        for (index_t ox = 0; ox < g.out_width; ++ox) {
            const Taps cols = taps_inside(ox * g.window.stride_w - g.window.pad_left, g.window.kernel_w,
                                          g.window.dilation_w, g.image.width);
            const Storage* const window =
                static_cast<const Storage*>(g.image.data) + rows.first * g.image.row + cols.first * g.image.pixel;
            Storage* const y = static_cast<Storage*>(g.y) + (oy - g.out_row_begin) * g.y_row + ox * g.y_pixel;
            const index_t taps_h = rows.end - rows.begin, taps_w = cols.end - cols.begin;
            if (dense_3x3 && taps_h == 3 && taps_w == 3) {
                max_pool_3x3<E>(g, window, y);
                continue;
            }
            for (index_t c = 0; c < g.channels; c += kVectorFloats) {
                const index_t n = g.channels - c < kVectorFloats ? g.channels - c : kVectorFloats;
                E::store_first(y + c, max_of_taps<E>(g, window + c, taps_h, taps_w, n), n);
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
