// Products of groups of as many channels as a vector has.
//
// Each input channel of a pixel is broadcast once and multiplied with a vector of weights for each tap of a kernel's
// row that reads it. In a matrix product of one vector of columns it would be loaded once a tap, and loads would be the
// bottleneck.
#pragma once

#include "kernels/simd/simd.h"

namespace resfuse {
namespace {

// Adds the products of `Taps` neighbouring taps to some pixels' sums. `x` is what the first pixel's first tap reads.
// Weights of one input channel are `pitch` floats behind those of the one before.
template <int Stride, int Pixels, int Taps>
[[gnu::always_inline]] inline void add_taps(const float* x, const float* weight, index_t pitch, Vec* acc) {
    for (const float* const end = x + kVectorFloats; x < end; ++x, weight += pitch) {
        Vec w[Taps];
#pragma GCC unroll 3
        for (int s = 0; s < Taps; ++s) w[s] = in_register(load(weight + s * kVectorFloats));
#pragma GCC unroll 32
        for (int col = 0; col < (Pixels - 1) * Stride + Taps; ++col) {
            if (Taps <= col % Stride) continue;  // between the taps
            const Vec value = in_register(broadcast(x[col * kVectorFloats]));
#pragma GCC unroll 3
            for (int s = 0; s < Taps; ++s)
                if ((col - s) % Stride == 0 && col >= s && (col - s) / Stride < Pixels)
                    acc[(col - s) / Stride] += value * w[s];
        }
    }
}

// The same of pixels that are `step` floats apart, for one tap.
template <int Pixels>
[[gnu::always_inline]] inline void add_tap(const float* x, index_t step, const float* weight, index_t pitch, Vec* acc) {
    for (const float* const end = x + kVectorFloats; x < end; ++x, weight += pitch) {
        const Vec w = in_register(load(weight));
#pragma GCC unroll 14
        for (int p = 0; p < Pixels; ++p) acc[p] += broadcast(x[p * step]) * w;
    }
}

// Adds the products of a row of the kernel, whose taps are `dilation` floats apart. Weights: [channel][tap][lane].
template <int Stride, int Pixels>
[[gnu::always_inline]] inline void add_kernel_row(const float* x, index_t step, index_t dilation, index_t taps,
                                                  const float* weight, Vec* acc) {
    const index_t pitch = taps * kVectorFloats;
    if constexpr (Stride > 0)
        if (taps == 3 && dilation == kVectorFloats) return add_taps<Stride, Pixels, 3>(x, weight, pitch, acc);
    for (index_t s = 0; s < taps; ++s) add_tap<Pixels>(x + s * dilation, step, weight + s * kVectorFloats, pitch, acc);
}

}  // namespace
}  // namespace resfuse
