// Resampling of NHWC images, vectorised over the channels.
#pragma once

#include "kernels/layout/layout.h"
#include "kernels/resize/args.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

template <class E>
void resize_row(const ResizeRowArgs& g) {
    using Storage = typename E::Storage;
    const auto *top = static_cast<const Storage*>(g.top), *bottom = static_cast<const Storage*>(g.bottom);
    auto* y = static_cast<Storage*>(g.y);
    const Vec below = broadcast(g.bottom_weight), above = broadcast(1.0f - g.bottom_weight);
    for (index_t x = 0; x < g.cols; ++x, y += g.y_pixel) {
        const ResizeTap& tap = g.taps[x];
        const index_t left = tap.first * g.pixel, right = tap.second * g.pixel;
        if (g.nearest) {
            move_elements<E, E>(y, top + left, g.channels);
            continue;
        }
        const Vec after = broadcast(tap.weight), before = broadcast(1.0f - tap.weight);
        for (index_t c = 0; c < g.channels; c += kVectorFloats) {
            const index_t n = at_most(g.channels - c, kVectorFloats);
            const auto at = [&](const Storage* row, index_t pixel) { return E::load_first(row + pixel + c, n); };
            const Vec upper = before * at(top, left) + after * at(top, right);
            const Vec lower = before * at(bottom, left) + after * at(bottom, right);
            E::store_first(y + c, above * upper + below * lower, n);
        }
    }
}

}  // namespace
}  // namespace resfuse
