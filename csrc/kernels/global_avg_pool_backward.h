// The gradient of global average pooling: every pixel of a channel gets the same share. One streaming write of the
// image.
#pragma once

#include "kernels/element.h"

namespace resfuse {
namespace {

constexpr index_t kSpreadElements = 2048;  // of a pattern that is copied over the image

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

template <class E>
void pool_spread(const PoolSpreadArgs& g) {
    using T = typename E::Storage;
    const auto* grad = static_cast<const T*>(g.grad);
    auto* dx = static_cast<T*>(g.dx);
    const auto pixels = static_cast<typename E::Accumulator>(g.pixels);
    const auto share = [&](index_t c) -> T {
        return E::round(E::widen(grad[c * g.stride_grad]) / pixels - typename E::Vector{})[0];
    };

    if (g.stride_c == 1 && (g.rows * g.cols > 1 || g.stride_w != 1)) {
        for (index_t c = 0; c < g.channels; c += kSpreadElements) {
            const index_t n = at_most(kSpreadElements, g.channels - c);
            const index_t repeats = g.stride_w == g.channels ? at_most(kSpreadElements / n, g.cols) : 1;
            T pattern[kSpreadElements];
            for (index_t j = 0; j < n; ++j) pattern[j] = share(c + j);
            for (index_t r = 1; r < repeats; ++r) copy_elements(pattern + r * n, pattern, n);
            for (index_t y = 0; y < g.rows; ++y)
                for (index_t x = 0; x < g.cols; x += repeats) {
                    T* to = dx + c + y * g.stride_h + x * g.stride_w;
                    copy_elements(to, pattern, at_most(repeats, g.cols - x) * n);
                }
        }
        return;
    }
    for (index_t c = 0; c < g.channels; ++c) {
        const T value = share(c);
        for (index_t y = 0; y < g.rows; ++y) {
            T* row = dx + c * g.stride_c + y * g.stride_h;
            if (g.stride_w == 1) {
                fill_run(row, g.cols, value);
            } else {
                for (index_t x = 0; x < g.cols; ++x) row[x * g.stride_w] = value;
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
