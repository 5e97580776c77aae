// Layer normalisation over the channels of each pixel. Of the two passes over a pixel the second finds it in L1.
#pragma once

#include "kernels/norm/batch_norm.h"

namespace resfuse {
namespace {

inline float sum_of_lanes(Vec v) {
    float sum = 0.0f;
    for (int lane = 0; lane < kVectorFloats; ++lane) sum += v[lane];
    return sum;
}

// The sum of what `term(c, n)` gives for n channels from c on; lanes behind these give zeros.
template <class Term>
[[gnu::always_inline]] inline float sum_channels(index_t channels, const Term& term) {
    Vec first = zero(), second = zero();
    index_t c = 0;
    for (; c + 2 * kVectorFloats <= channels; c += 2 * kVectorFloats) {
        first += term(c, kVectorFloats);
        second += term(c + kVectorFloats, kVectorFloats);
    }
    for (; c < channels; c += kVectorFloats) first += term(c, at_most(kVectorFloats, channels - c));
    return sum_of_lanes(first + second);
}

template <class E>
void layer_norm(const LayerNormArgs& g) {
    using Storage = typename E::Storage;
    const auto* x = static_cast<const Storage*>(g.x);
    auto* y = static_cast<Storage*>(g.y);
    const auto count = static_cast<float>(g.channels);
    constexpr bool kRounds = !std::is_same_v<E, Fp32>;
    const Vec floor = broadcast(g.floor);
    for (index_t row = 0; row < g.rows; ++row, x += g.x_pixel, y += g.y_pixel) {
        const Vec mean =
            broadcast(sum_channels(g.channels, [&](index_t c, index_t n) { return load_at<E>(x, c, n); }) / count);
        const float squares = sum_channels(g.channels, [&](index_t c, index_t n) {
            const Vec centred = load_at<E>(x, c, n) - mean, square = centred * centred;
            if (n == kVectorFloats) return square;
            float lanes[kVectorFloats] = {};
            store_first(lanes, square, n);
            return load(lanes);
        });
        const Vec inverse = broadcast(1.0f / __builtin_sqrtf(squares / count + g.eps));
        store_rows<E>(y, 1, g.channels, [&](index_t, index_t c, index_t n) __attribute__((always_inline)) {
            const Vec v =
                (load_at<E>(x, c, n) - mean) * inverse * load_first(g.scale + c, n) + load_first(g.bias + c, n);
            const Vec clamped = clamp_below(v, floor);
            if constexpr (kRounds) return activated(g.activation, clamped, c);
            return clamped;
        });
        if constexpr (!kRounds)
            if (g.activation.kind != Activation::none) activate<E>({g.activation, y, 1, g.channels, g.channels});
    }
}

}  // namespace
}  // namespace resfuse
