// The gradient of global average pooling: every pixel of a channel gets the same share. One streaming write of the
// image.
//
// Dense layouts are written as copies of a pattern of a few KiB that stays in L1: copies of that length are what the C
// library's memcpy does without first reading the memory that it writes.
#pragma once

#include <type_traits>

#include "kernels/pool/args.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

constexpr index_t kPatternElements = 2048;

// shares[k] = grad[k * stride] / pixels.
template <class E>
void make_shares(const typename E::Storage* grad, index_t stride, index_t pixels, index_t n,
                 typename E::Storage* shares) {
    using A = typename E::Accumulator;
    const typename E::Vector divisor = static_cast<A>(pixels) - typename E::Vector{};
    for (index_t k = 0; k < n; k += E::kLanes) {
        const index_t lanes = at_most(E::kLanes, n - k);
        typename E::Vector wide{};
        if (stride == 1) {
            wide = lanes == E::kLanes ? E::lanes(grad + k) : E::lanes_first(grad + k, lanes);
        } else {
            for (index_t i = 0; i < lanes; ++i) wide[i] = E::widen(grad[(k + i) * stride]);
        }
        const auto rounded = E::round(wide / divisor);
        std::memcpy(shares + k, &rounded, static_cast<std::size_t>(lanes) * sizeof(*shares));
    }
}

template <class T>
inline void fill_run(T* p, index_t n, T value) {
    using V = typename VectorOf<T>::type;
    constexpr index_t lanes = kVectorBytes / sizeof(T);
    if (n < lanes) {
        for (index_t i = 0; i < n; ++i) p[i] = value;
        return;
    }
    const V v = value - V{};
    for (index_t i = 0; i + lanes <= n; i += lanes) store_vector(p + i, v);
    store_vector(p + n - lanes, v);
}

// Channels next to each other: one pixel's shares, as often as they fit, make the pattern.
template <class T>
void spread_lanes(const PoolSpreadArgs& g, index_t first, index_t channels, const T* shares, T* pattern) {
    const index_t repeats = g.stride_w == g.channels ? at_most(kPatternElements / channels, g.cols) : 1;
    for (index_t r = 0; r < repeats; ++r) copy_elements(pattern + r * channels, shares, channels);
    for (index_t y = 0; y < g.rows; ++y)
        for (index_t x = 0; x < g.cols; x += repeats)
            copy_elements(static_cast<T*>(g.dx) + first + y * g.stride_h + x * g.stride_w, pattern,
                          at_most(repeats, g.cols - x) * channels);
}

// Short runs one after the other, in vectors from end to end: each holds one value, or the end of a run and the
// beginning of the next. `run` is at least as long as a vector.
template <class T>
void write_runs(T* to, index_t run, index_t count, const T* values) {
    using V = typename VectorOf<T>::type;
    using Index = std::conditional_t<sizeof(T) == 2, std::int16_t,
                                     std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>>;
    using Lane = typename VectorOf<Index>::type;
    constexpr index_t lanes = kVectorBytes / sizeof(T);
    Lane lane{};
    for (index_t i = 0; i < lanes; ++i) lane[i] = static_cast<Index>(i);
    const index_t total = run * count;
    index_t k = 0, rest = run, i = 0;  // run at hand, what is left of it, elements written
    V value = values[0] - V{};
    for (; i + lanes <= total; i += lanes) {
        if (rest >= lanes) {
            store_vector(to + i, value);
            rest -= lanes;
            continue;
        }
        const T following = ++k < count ? values[k] : T{};
        const V next = following - V{};
        store_vector(to + i, lane < static_cast<Index>(rest) ? value : next);
        value = next;
        rest += run - lanes;
    }
    for (; i < total; ++i) to[i] = values[i / run];
}

// Pixels next to each other.
template <class T>
void spread_runs(const PoolSpreadArgs& g, index_t first, index_t channels, const T* shares, T* pattern) {
    T* dx = static_cast<T*>(g.dx) + first * g.stride_c;
    constexpr index_t lanes = kVectorBytes / sizeof(T);
    if (g.rows == 1 && g.stride_c == g.cols && g.cols >= lanes && g.cols <= kPatternElements / 2)
        return write_runs(dx, g.cols, channels, shares);
    for (index_t c = 0; c < channels; ++c) {
        fill_run(pattern, at_most(kPatternElements, g.cols), shares[c]);
        for (index_t y = 0; y < g.rows; ++y)
            for (index_t x = 0; x < g.cols; x += kPatternElements)
                copy_elements(dx + c * g.stride_c + y * g.stride_h + x, pattern, at_most(kPatternElements, g.cols - x));
    }
}

template <class E>
void pool_spread(const PoolSpreadArgs& g) {
    using T = typename E::Storage;
    T shares[kPatternElements], pattern[kPatternElements];
    for (index_t c = 0; c < g.channels; c += kPatternElements) {
        const index_t channels = at_most(kPatternElements, g.channels - c);
        make_shares<E>(static_cast<const T*>(g.grad) + c * g.stride_grad, g.stride_grad, g.pixels, channels, shares);
        if (g.stride_w == 1 && g.cols > 1) {
            spread_runs(g, c, channels, shares, pattern);
        } else if (g.stride_c == 1) {
            spread_lanes(g, c, channels, shares, pattern);
        } else {
            for (index_t k = 0; k < channels; ++k)
                for (index_t y = 0; y < g.rows; ++y)
                    for (index_t x = 0; x < g.cols; ++x)
                        static_cast<T*>(g.dx)[(c + k) * g.stride_c + y * g.stride_h + x * g.stride_w] = shares[k];
        }
    }
}

}  // namespace
}  // namespace resfuse
