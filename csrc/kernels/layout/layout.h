// Copies a window of an image with any strides into a dense, zero-padded NHWC band.
#pragma once

#include <type_traits>

#include "kernels/layout/args.h"
#include "kernels/layout/transpose.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

template <class E>
inline void fill_zeros(typename E::Storage* p, index_t n) {
    index_t i = 0;
    for (; i + kVectorFloats <= n; i += kVectorFloats) E::store(p + i, zero());
    for (; i < n; ++i) p[i] = 0;
}

// Elements of one type as those of another.
template <class From, class To>
inline void move_elements(typename To::Storage* to, const typename From::Storage* from, index_t n) {
    index_t i = 0;
    for (; i + kVectorFloats <= n; i += kVectorFloats) To::store(to + i, From::load(from + i));
    To::store_first(to + i, From::load_first(from + i, n - i), n - i);
}

template <class From, class To>
inline typename To::Storage moved(typename From::Storage x) {
    if constexpr (std::is_same_v<From, To>) {
        return x;
    } else {
        static_assert(std::is_same_v<To, Fp32>);
        return From::widen(x);
    }
}

// Three planes to interleaved pixels, the layout of every RGB stem.
template <class From, class To>
inline void interleave3(typename To::Storage* to, const typename From::Storage* from, index_t stride_c,
                        index_t pixels) {
    const auto *r = from, *g = from + stride_c, *b = from + 2 * stride_c;
    for (index_t x = 0; x < pixels; ++x) {
        to[3 * x] = moved<From, To>(r[x]);
        to[3 * x + 1] = moved<From, To>(g[x]);
        to[3 * x + 2] = moved<From, To>(b[x]);
    }
}

template <class From, class To>
inline void copy_pixels(const BandArgs& g, typename To::Storage* to, const typename From::Storage* from,
                        index_t pixels) {
    if (g.stride_c == 1 && g.stride_w == g.channels && g.pixel == g.channels) {
        move_elements<From, To>(to, from, pixels * g.channels);
    } else if (g.stride_c == 1) {
        for (index_t x = 0; x < pixels; ++x)
            move_elements<From, To>(to + x * g.pixel, from + x * g.stride_w, g.channels);
    } else if (g.channels == 3 && g.pixel == 3 && g.stride_w == 1) {
        interleave3<From, To>(to, from, g.stride_c, pixels);
    } else {
        if constexpr (std::is_same_v<From, Fp32>)
            if (g.stride_w == 1) return transpose_floats({from, g.channels, pixels, g.stride_c, to, g.pixel});
        for (index_t x = 0; x < pixels; ++x)
            for (index_t c = 0; c < g.channels; ++c)
                to[x * g.pixel + c] = moved<From, To>(from[x * g.stride_w + c * g.stride_c]);
    }
}

// What lies outside the image is zeros in every type.
template <class From, class To>
void copy_band(const BandArgs& g) {
    using Storage = typename To::Storage;
    const auto* const image = static_cast<const typename From::Storage*>(g.image);
    // Columns of the band left of, inside and right of the image.
    const index_t left = g.x0 >= 0 ? 0 : (-g.x0 < g.cols ? -g.x0 : g.cols);
    const index_t to_edge = g.width - g.x0;
    const index_t end = to_edge < left ? left : (to_edge < g.cols ? to_edge : g.cols);
    for (index_t i = 0; i < g.rows; ++i) {
        Storage* to = static_cast<Storage*>(g.band) + i * g.cols * g.pixel;
        const index_t y = g.y0 + i;
        if (y < 0 || y >= g.height) {
            fill_zeros<To>(to, g.cols * g.pixel);
            continue;
        }
        fill_zeros<To>(to, left * g.pixel);
        if (end > left)
            copy_pixels<From, To>(g, to + left * g.pixel, image + y * g.stride_h + (g.x0 + left) * g.stride_w,
                                  end - left);
        fill_zeros<To>(to + end * g.pixel, (g.cols - end) * g.pixel);
    }
}

}  // namespace
}  // namespace resfuse
