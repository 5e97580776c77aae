// Max-pooling over NHWC images, vectorised over the channels.
#pragma once

#include "kernels/simd.h"

namespace resfuse {
namespace {

void max_pool(const MaxPoolArgs& g) {
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy)
        for (index_t ox = 0; ox < g.out_width; ++ox) {
            float* y = g.y + (oy - g.out_row_begin) * g.y_row + ox * g.channels;
            for (index_t c = 0; c < g.channels; c += kVectorFloats) {
                const index_t n = g.channels - c < kVectorFloats ? g.channels - c : kVectorFloats;
                Vec best = broadcast(-__builtin_inff());
                for (index_t r = 0; r < g.kernel_h; ++r) {
                    const index_t iy = oy * g.stride_h - g.pad_top + r * g.dilation_h;
                    if (iy < 0 || iy >= g.image.height) continue;
                    for (index_t s = 0; s < g.kernel_w; ++s) {
                        const index_t ix = ox * g.stride_w - g.pad_left + s * g.dilation_w;
                        if (ix < 0 || ix >= g.image.width) continue;
                        const float* p = g.image.data + iy * g.image.row + ix * g.image.pixel + c;
                        best = max_keep_nan(best, load_first(p, n));
                    }
                }
                store_first(y + c, best, n);
            }
        }
}

}  // namespace
}  // namespace resfuse
