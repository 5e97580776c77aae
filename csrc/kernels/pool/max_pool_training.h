// Max-pooling in training: where each maximum was, and the gradient that goes back there.
#pragma once

#include "kernels/pool/args.h"
#include "kernels/pool/max_pool.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

// Taps are bytes in memory and lanes in registers.
typedef std::uint8_t TapBytes __attribute__((vector_size(kVectorFloats)));

inline void store_taps(std::uint8_t* to, VecMask taps, index_t n) {
    const TapBytes bytes = __builtin_convertvector(taps, TapBytes);
    if (n == kVectorFloats) {
        std::memcpy(to, &bytes, sizeof bytes);
    } else {
        std::memcpy(to, &bytes, static_cast<std::size_t>(n));
    }
}

inline VecMask load_taps(const std::uint8_t* from, index_t n) {
    TapBytes bytes{};
    if (n == kVectorFloats) {
        std::memcpy(&bytes, from, sizeof bytes);
    } else {
        std::memcpy(&bytes, from, static_cast<std::size_t>(n));
    }
    return __builtin_convertvector(bytes, VecMask);
}

// A later tap wins where it is larger, or NaN, as in torch.
template <class E>
void max_pool_index(const MaxPoolIndexArgs& args) {
    using Storage = typename E::Storage;
    const MaxPoolArgs& g = args.pool;
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy) {
        const Taps rows = taps_inside(oy * g.window.stride_h - g.window.pad_top, g.window.kernel_h, g.window.dilation_h,
                                      g.image.height);
        for (index_t ox = 0; ox < g.out_width; ++ox) {
            const Taps cols = taps_inside(ox * g.window.stride_w - g.window.pad_left, g.window.kernel_w,
                                          g.window.dilation_w, g.image.width);
            const Storage* const window =
                static_cast<const Storage*>(g.image.data) + rows.first * g.image.row + cols.first * g.image.pixel;
            const index_t at = (oy - g.out_row_begin) * g.y_row + ox * g.channels;
            for (index_t c = 0; c < g.channels; c += kVectorFloats) {
                const index_t n = g.channels - c < kVectorFloats ? g.channels - c : kVectorFloats;
                Vec best = E::load_first(window + c, n);
                VecMask tap = VecMask{} + static_cast<int>(rows.begin * g.window.kernel_w + cols.begin);
                for (index_t r = rows.begin; r < rows.end; ++r)
                    for (index_t s = cols.begin; s < cols.end; ++s) {
                        const Vec v = E::load_first(window + (r - rows.begin) * g.window.dilation_h * g.image.row +
                                                        (s - cols.begin) * g.window.dilation_w * g.image.pixel + c,
                                                    n);
                        const VecMask wins = (v > best) | (v != v);
                        best = wins ? v : best;
                        tap = wins ? VecMask{} + static_cast<int>(r * g.window.kernel_w + s) : tap;
                    }
                E::store_first(static_cast<Storage*>(g.y) + at + c, best, n);
                store_taps(args.taps + at + c, tap, n);
            }
        }
    }
}

// The windows of one dimension that a pixel is in: numbers `first`, first + 1, ..., and the pixel's tap in each.
struct Windows {
    index_t first, count, tap;
};
inline Windows windows_of(index_t pixel, index_t kernel, index_t stride, index_t pad, index_t windows) {
    const index_t last = (pixel + pad) / stride, span = pixel + pad - kernel;
    const index_t first = span < 0 ? 0 : span / stride + 1;
    return {first, at_most(last, windows - 1) - first + 1, pixel + pad - first * stride};
}

// Of windows without dilation.
template <class E>
void max_pool_grad(const MaxPoolGradArgs& g) {
    using Storage = typename E::Storage;
    const Storage* const grad = static_cast<const Storage*>(g.grad);
    for (index_t y = g.row_begin; y < g.row_end; ++y) {
        const Windows rows = windows_of(y, g.window.kernel_h, g.window.stride_h, g.window.pad_top, g.out_height);
        for (index_t x = 0; x < g.width; ++x) {
            const Windows cols = windows_of(x, g.window.kernel_w, g.window.stride_w, g.window.pad_left, g.out_width);
            Storage* const dx = static_cast<Storage*>(g.dx) + ((y - g.row_begin) * g.width + x) * g.channels;
            const index_t first = (rows.first * g.out_width + cols.first) * g.channels;
            for (index_t c = 0; c < g.channels; c += kVectorFloats) {
                const index_t n = at_most(kVectorFloats, g.channels - c);
                Vec sum = zero();
                for (index_t i = 0; i < rows.count; ++i)
                    for (index_t j = 0; j < cols.count; ++j) {
                        const index_t at = first + (i * g.out_width + j) * g.channels + c;
                        const int tap = static_cast<int>((rows.tap - i * g.window.stride_h) * g.window.kernel_w +
                                                         cols.tap - j * g.window.stride_w);
                        const VecMask hit = load_taps(g.taps + at, n) == VecMask{} + tap;
                        sum += hit ? E::load_first(grad + at, n) : zero();
                    }
                E::store_first(dx + c, sum, n);
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
