// Copies a window of an image with any strides into a dense, zero-padded NHWC band.
#pragma once

#include <type_traits>

#include "kernels/layout/args.h"
#include "kernels/layout/transpose.h"
#include "kernels/simd/element.h"
#include "kernels/simd/lanes.h"

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

// Floating-point elements of one type as those of another.
template <class F, class T>
struct ElementMove {
    using From = typename F::Storage;
    using To = typename T::Storage;

    void fill(To* to, index_t n) const { fill_zeros<T>(to, n); }
    void move(To* to, const From* from, index_t n) const { move_elements<F, T>(to, from, n); }
    To one(From x) const {
        if constexpr (std::is_same_v<F, T>) {
            return x;
        } else {
            static_assert(std::is_same_v<T, Fp32>);
            return F::widen(x);
        }
    }
};

// Three planes to interleaved pixels, the layout of every RGB stem.
template <class Move>
inline void interleave3(const Move& m, typename Move::To* to, const typename Move::From* from, index_t stride_c,
                        index_t pixels) {
    // Moved in vectors where that is more than a copy.
    constexpr index_t kPart = 64;
    typename Move::To planes[3][kPart];
    for (index_t first = 0; first < pixels; first += kPart, to += 3 * kPart) {
        const index_t n = at_most(pixels - first, kPart);
        for (index_t c = 0; c < 3; ++c) m.move(planes[c], from + c * stride_c + first, n);
        for (index_t x = 0; x < n; ++x)
            for (index_t c = 0; c < 3; ++c) to[3 * x + c] = planes[c][x];
    }
}
template <class E>
inline void interleave3(const ElementMove<E, E>&, typename E::Storage* to, const typename E::Storage* from,
                        index_t stride_c, index_t pixels) {
    const auto *r = from, *g = from + stride_c, *b = from + 2 * stride_c;
    for (index_t x = 0; x < pixels; ++x) {
        to[3 * x] = r[x];
        to[3 * x + 1] = g[x];
        to[3 * x + 2] = b[x];
    }
}

// Two planes to interleaved pixels, as a channel shuffle of two groups wants them.
template <class E>
inline void interleave2(typename E::Storage* to, const typename E::Storage* first, const typename E::Storage* second,
                        index_t pixels) {
    index_t i = 0;
    for (; i + kVectorFloats <= pixels; i += kVectorFloats, to += 2 * kVectorFloats) {
        const Vec a = E::load(first + i), b = E::load(second + i);
        E::store(to, interleaved_from<0>(a, b));
        E::store(to + kVectorFloats, interleaved_from<kVectorFloats / 2>(a, b));
    }
    for (; i < pixels; ++i, to += 2) {
        to[0] = first[i];
        to[1] = second[i];
    }
}

// Whether a move is from elements to those of the same type, which E then is.
template <class Move>
struct SameType : std::false_type {};
template <class T>
struct SameType<ElementMove<T, T>> : std::true_type {
    using E = T;
};

template <class Move>
inline void move_pixels(const BandArgs& g, const Move& m, typename Move::To* to, const typename Move::From* from,
                        index_t pixels) {
    if (g.stride_c == 1 && g.stride_w == g.channels && g.pixel == g.channels) {
        m.move(to, from, pixels * g.channels);
    } else if (g.stride_c == 1) {
        for (index_t x = 0; x < pixels; ++x) m.move(to + x * g.pixel, from + x * g.stride_w, g.channels);
    } else if (g.channels == 3 && g.pixel == 3 && g.stride_w == 1) {
        interleave3(m, to, from, g.stride_c, pixels);
    } else {
        if constexpr (SameType<Move>::value)
            if (g.channels == 2 && g.pixel == 2 && g.stride_w == 1)
                return interleave2<typename SameType<Move>::E>(to, from, from + g.stride_c, pixels);
        if constexpr (std::is_same_v<Move, ElementMove<Fp32, Fp32>>)
            if (g.stride_w == 1) return transpose_floats({from, g.channels, pixels, g.stride_c, to, g.pixel});
        for (index_t x = 0; x < pixels; ++x)
            for (index_t c = 0; c < g.channels; ++c) to[x * g.pixel + c] = m.one(from[x * g.stride_w + c * g.stride_c]);
    }
}

// What lies outside the image is filled.
template <class Move>
inline void copy_band_by(const BandArgs& g, const Move& m) {
    const auto* const image = static_cast<const typename Move::From*>(g.image);
    // Columns of the band left of, inside and right of the image.
    const index_t left = g.x0 >= 0 ? 0 : (-g.x0 < g.cols ? -g.x0 : g.cols);
    const index_t to_edge = g.width - g.x0;
    const index_t end = to_edge < left ? left : (to_edge < g.cols ? to_edge : g.cols);
    for (index_t i = 0; i < g.rows; ++i) {
        auto* to = static_cast<typename Move::To*>(g.band) + i * g.cols * g.pixel;
        const index_t y = g.y0 + i;
        if (y < 0 || y >= g.height) {
            m.fill(to, g.cols * g.pixel);
            continue;
        }
        m.fill(to, left * g.pixel);
        if (end > left)
            move_pixels(g, m, to + left * g.pixel, image + y * g.stride_h + (g.x0 + left) * g.stride_w, end - left);
        m.fill(to + end * g.pixel, (g.cols - end) * g.pixel);
    }
}

template <class From, class To>
void copy_band(const BandArgs& g) {
    copy_band_by(g, ElementMove<From, To>{});
}

}  // namespace
}  // namespace resfuse
