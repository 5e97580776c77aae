// Activations that are not a clamp; ReLU is one, in the epilogues, and never comes here.
#pragma once

#include "kernels/activation/args.h"
#include "kernels/activation/sigmoid.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

// e^x to about one unit in the last place: x = k ln 2 + r, a polynomial of degree 6 in r (Cephes' expf), times 2^k in
// two factors, so that results down to the denormals and up to infinity come out right. NaN stays NaN.
inline Vec exp_vector(Vec x) {
    const Vec high = Vec{} + 89.0f, low = Vec{} - 104.0f;
    const Vec bounded = x > high ? high : (x < low ? low : x);
    const Vec magic = Vec{} + 0x1.8p23f;  // adding it rounds to a whole number
    const Vec k = (bounded * 1.44269504088896341f + magic) - magic;
    const Vec r = (bounded - k * 0.693359375f) + k * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const VecMask whole = __builtin_convertvector(k == k ? k : Vec{}, VecMask);
    const VecMask half = whole >> 1;
    const Vec scaled = p * (Vec)((half + 127) << 23) * (Vec)((whole - half + 127) << 23);
    return x != x ? x : scaled;
}

// Calls f for vectors of n elements and stores what it returns.
template <class E, class F>
inline void transform_elements(typename E::Storage* p, index_t n, F f) {
    for (index_t i = 0; i < n; i += kVectorFloats) {
        const index_t lanes = at_most(kVectorFloats, n - i);
        E::store_first(p + i, f(E::load_first(p + i, lanes)), lanes);
    }
}

// e^(x - max) / sum, the shift by the largest against overflow.
template <class E>
inline void softmax(typename E::Storage* p, index_t n) {
    float largest = -__builtin_inff();
    for (index_t i = 0; i < n; ++i) {
        const float x = E::widen(p[i]);
        largest = x > largest || x != x ? x : largest;
    }
    double sum = 0;
    const auto exponential = [&](Vec x) { return exp_vector(x - broadcast(largest)); };
    for (index_t i = 0; i < n; i += kVectorFloats) {
        const index_t lanes = at_most(kVectorFloats, n - i);
        const Vec e = exponential(E::load_first(p + i, lanes));
        for (index_t k = 0; k < lanes; ++k) sum += static_cast<double>(e[k]);
    }
    const Vec divisor = broadcast(static_cast<float>(sum));
    transform_elements<E>(p, n, [&](Vec x) { return exponential(x) / divisor; });
}

// x times the normal distribution's cumulative function, (1 + erf(x / sqrt 2)) / 2, with erf's error below 1.5e-7
// (Abramowitz & Stegun, "Handbook of Mathematical Functions", 7.1.26).
inline Vec gelu(Vec x) {
    const Vec magnitude = (x < 0.0f ? -x : x) * 0.70710678118654752f;
    const Vec t = 1.0f / (1.0f + 0.3275911f * magnitude);
    Vec p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = (p * t + 0.254829592f) * t;
    const Vec tail = 0.5f * p * exp_vector(-(magnitude * magnitude));  // of the side away from zero
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// Between 0 and 6; NaN stays NaN.
inline Vec relu6(Vec x) { return x < 0.0f ? zero() : (x > 6.0f ? broadcast(6.0f) : x); }

// e^x - 1; near zero, where the difference would cancel, by its series.
inline Vec exp_minus_one(Vec x) {
    const Vec series =
        x + x * x * (0.5f + x * (1.0f / 6 + x * (1.0f / 24 + x * (1.0f / 120 + x * (1.0f / 720 + x / 5040)))));
    return x * x < 0.125f ? series : exp_vector(x) - 1.0f;
}

// x tanh(log(1 + e^x)) (Misra, "Mish", 2019), of e = e^x: x e (e + 2) / (e (e + 2) + 2).
inline Vec mish(Vec x) {
    const Vec e = exp_vector(x > 20.0f ? broadcast(20.0f) : x);
    const Vec n = e * (e + 2.0f);
    return x > 20.0f ? x : x * (n / (n + 2.0f));
}

// Calls f with one of the functions of single elements: of a vector, and of the channel that it begins with.
template <class F>
inline void with_activation(const ActivationArgs& activation, F f) {
    const Vec slope = broadcast(activation.slope);
    const float* const slopes = activation.slopes;
    const Vec upper = broadcast(activation.upper);
    switch (activation.kind) {
        case Activation::silu:
            return f([](Vec x, index_t) { return x * sigmoid(x); });
        case Activation::gelu:
            return f([](Vec x, index_t) { return gelu(x); });
        case Activation::leaky_relu:
            return f([slope](Vec x, index_t) { return x > 0.0f ? x : x * slope; });
        case Activation::prelu:
            return f([slopes](Vec x, index_t channel) { return x > 0.0f ? x : x * load(slopes + channel); });
        case Activation::tanh:
            return f([](Vec x, index_t) {
                for (int lane = 0; lane < kVectorFloats; ++lane) x[lane] = __builtin_tanhf(x[lane]);
                return x;
            });
        case Activation::sigmoid:
            return f([](Vec x, index_t) { return x != x ? x : sigmoid(x); });
        case Activation::relu6:
            return f([](Vec x, index_t) { return relu6(x); });
        case Activation::hardsigmoid:
            return f([](Vec x, index_t) { return relu6(x + 3.0f) * (1.0f / 6); });
        case Activation::hardswish:
            return f([](Vec x, index_t) { return x * relu6(x + 3.0f) * (1.0f / 6); });
        case Activation::mish:
            return f([](Vec x, index_t) { return mish(x); });
        case Activation::clamp:
        case Activation::hardtanh:
            return f(
                [slope, upper](Vec x, index_t) {  // NaN stays NaN; of bounds in the wrong order the upper one holds
                    const Vec above = x < slope ? slope : x;
                    return above > upper ? upper : above;
                });
        case Activation::elu:
            return f([slope](Vec x, index_t) { return x > 0.0f ? x : slope * exp_minus_one(x); });
        default:
            return;
    }
}

// Of some channels from `channel` on.
inline Vec activated(const ActivationArgs& activation, Vec x, index_t channel) {
    with_activation(activation, [&](auto function) { x = function(x, channel); });
    return x;
}

// Of some channels from `channel` on.
inline ActivationArgs from_channel(ActivationArgs activation, index_t channel) {
    if (activation.slopes) activation.slopes += channel;
    return activation;
}

// Several vectors at once, `apart` elements from one to the next.
template <class E, class F>
[[gnu::always_inline]] inline void activate_four(typename E::Storage* p, index_t apart, index_t channel, index_t step,
                                                 const F& function) {
    Vec v[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j] = function(E::load(p + j * apart), channel + j * step);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) E::store(p + j * apart, v[j]);
}

template <class E>
void activate(const ActivateArgs& g) {
    auto* p = static_cast<typename E::Storage*>(g.data);
    if (g.activation.kind == Activation::softmax) {
        for (index_t i = 0; i < g.pixels; ++i, p += g.pixel) softmax<E>(p, g.channels);
        return;
    }
    const bool dense = g.pixel == g.channels && g.activation.slopes == nullptr;
    const index_t runs = dense ? 1 : g.pixels, n = dense ? g.pixels * g.channels : g.channels;
    with_activation(g.activation, [&](auto function) {
        index_t run = 0;
        // Of few channels four pixels at once.
        if (n < 4 * kVectorFloats)
            for (; run + 4 <= runs; run += 4, p += 4 * g.pixel) {
                index_t i = 0;
                for (; i + kVectorFloats <= n; i += kVectorFloats) activate_four<E>(p + i, g.pixel, i, 0, function);
                for (int j = 0; i < n && j < 4; ++j) {
                    auto* const rest = p + j * g.pixel + i;
                    E::store_first(rest, function(E::load_first(rest, n - i), i), n - i);
                }
            }
        for (; run < runs; ++run, p += g.pixel) {
            index_t i = 0;
            for (; i + 4 * kVectorFloats <= n; i += 4 * kVectorFloats)
                activate_four<E>(p + i, kVectorFloats, i, kVectorFloats, function);
            for (; i + kVectorFloats <= n; i += kVectorFloats) E::store(p + i, function(E::load(p + i), i));
            if (i < n) E::store_first(p + i, function(E::load_first(p + i, n - i), i), n - i);
        }
    });
}

}  // namespace
}  // namespace resfuse
