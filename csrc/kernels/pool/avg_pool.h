// Average pooling over NHWC images, vectorised over the channels.
#pragma once

#include "kernels/pool/args.h"
#include "kernels/pool/max_pool.h"

namespace resfuse {
namespace {

// What a window's sum is divided by in one dimension: its taps inside the image, or with the padding counted those that
// do not reach past it (torch's rule under ceil_mode).
inline index_t divisor_of(bool counts_padding, const Taps& taps, index_t start, index_t kernel, index_t size,
                          index_t pad_after) {
    if (!counts_padding) return taps.end - taps.begin;
    const index_t end = start + kernel < size + pad_after ? start + kernel : size + pad_after;
    return end - start;
}

template <class E>
void avg_pool(const AvgPoolArgs& args) {
    using Storage = typename E::Storage;
    const MaxPoolArgs& g = args.pool;
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy) {
        const index_t y0 = oy * g.window.stride_h - g.window.pad_top;
        const Taps rows = taps_inside(y0, g.window.kernel_h, 1, g.image.height);
        const index_t divisor_h =
            divisor_of(args.counts_padding, rows, y0, g.window.kernel_h, g.image.height, args.pad_bottom);
        for (index_t ox = 0; ox < g.out_width; ++ox) {
            const index_t x0 = ox * g.window.stride_w - g.window.pad_left;
            const Taps cols = taps_inside(x0, g.window.kernel_w, 1, g.image.width);
            const index_t divisor =
                divisor_h * divisor_of(args.counts_padding, cols, x0, g.window.kernel_w, g.image.width, args.pad_right);
            const Vec scale = broadcast(1.0f / static_cast<float>(divisor));
            const Storage* const window =
                static_cast<const Storage*>(g.image.data) + rows.first * g.image.row + cols.first * g.image.pixel;
            Storage* const y = static_cast<Storage*>(g.y) + (oy - g.out_row_begin) * g.y_row + ox * g.y_pixel;
            for (index_t c = 0; c < g.channels; c += kVectorFloats) {
                const index_t n = g.channels - c < kVectorFloats ? g.channels - c : kVectorFloats;
                Vec sum = zero();
                for (index_t r = 0; r < rows.end - rows.begin; ++r)
                    for (index_t s = 0; s < cols.end - cols.begin; ++s)
                        sum += E::load_first(window + r * g.image.row + s * g.image.pixel + c, n);
                E::store_first(y + c, sum * scale, n);
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
