// Batch normalisation in training (Ioffe & Szegedy, "Batch Normalization", 2015) over rows of channels: its statistics,
// its application with the residual sum and ReLU behind it, and the gradients of all three.
//
// Sums are taken in fp32 over a few rows, then in fp64, of values from which a nearby shift is subtracted: a channel
// whose mean is large beside its deviation loses nothing.
#pragma once

#include <type_traits>

#include "kernels/activation/activation.h"
#include "kernels/layout/layout.h"
#include "kernels/norm/args.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

constexpr index_t kSumRows = 64;  // whose sums are kept in fp32

// Adds to both sums what `terms(row, c, n)` gives for n channels from c on of `Rows` rows.
template <int Rows, class Terms>
[[gnu::always_inline]] inline void add_rows_at(const Terms& terms, index_t row, index_t channels, index_t c, index_t n,
                                               float* sums) {
    Vec first[Rows], second[Rows];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) terms(row + i, c, n, first[i], second[i]);
#pragma GCC unroll 3
    for (int width = Rows / 2; width > 0; width /= 2)
#pragma GCC unroll 4
        for (int i = 0; i < width; ++i) {
            first[i] += first[i + width];
            second[i] += second[i + width];
        }
    store_first(sums + c, load_first(sums + c, n) + first[0], n);
    store_first(sums + channels + c, load_first(sums + channels + c, n) + second[0], n);
}

template <int Rows, class Terms>
inline void add_rows(const Terms& terms, index_t row, index_t channels, float* sums) {
    index_t c = 0;
    for (; c + kVectorFloats <= channels; c += kVectorFloats)
        add_rows_at<Rows>(terms, row, channels, c, kVectorFloats, sums);
    if (c < channels) add_rows_at<Rows>(terms, row, channels, c, channels - c, sums);
}

// `scratch` holds 2 * channels floats, `sums` as many doubles.
template <class Terms>
inline void sum_rows(const Terms& terms, index_t rows, index_t channels, float* scratch, double* sums) {
    for (index_t i = 0; i < 2 * channels; ++i) sums[i] = 0.0;
    for (index_t begin = 0; begin < rows; begin += kSumRows) {
        const index_t end = at_most(begin + kSumRows, rows);
        fill_zeros<Fp32>(scratch, 2 * channels);
        index_t row = begin;
        for (; row + 8 <= end; row += 8) add_rows<8>(terms, row, channels, scratch);
        for (; row < end; ++row) add_rows<1>(terms, row, channels, scratch);
        for (index_t i = 0; i < 2 * channels; ++i) sums[i] += static_cast<double>(scratch[i]);
    }
}

template <class E>
[[gnu::always_inline]] inline Vec load_at(const void* data, index_t at, index_t n) {
    return E::load_first(static_cast<const typename E::Storage*>(data) + at, n);
}

// How a ReLU's gradient is found: from its output, from what its output is computed from, or there is none.
enum class Relu { kept, computed, none };

// NaN outputs let the gradient pass, as in torch.
template <class E, Relu relu>
inline Vec masked(const NormGrad& g, index_t at, index_t c, index_t n, Vec centred) {
    const Vec grad = load_at<E>(g.grad, at, n);
    if constexpr (relu == Relu::none) return grad;
    const Vec y =
        relu == Relu::kept ? load_at<E>(g.y, at, n) : centred * load_first(g.scale + c, n) + load_first(g.bias + c, n);
    return y <= zero() ? zero() : grad;
}

template <class F>
inline void for_relu_of(const NormGrad& g, F f) {
    if (g.y) {
        f(std::integral_constant<Relu, Relu::kept>());
    } else if (g.scale) {
        f(std::integral_constant<Relu, Relu::computed>());
    } else {
        f(std::integral_constant<Relu, Relu::none>());
    }
}

// Sums of x - shift and of its square.
template <class E>
void norm_sums(const NormSumsArgs& g) {
    sum_rows(
        [&](index_t row, index_t c, index_t n, Vec& first, Vec& second) __attribute__((always_inline)) {
            first = load_at<E>(g.x, row * g.x_pixel + c, n) - load_first(g.shift + c, n);
            second = first * first;
        },
        g.rows, g.channels, g.scratch, g.sums);
}

// Sums of the gradient behind the activation and of its products with x - mean.
template <class E>
void norm_grad_sums(const NormGradSumsArgs& args) {
    const NormGrad& g = args.g;
    for_relu_of(g, [&](auto relu) {
        sum_rows(
            [&](index_t row, index_t c, index_t n, Vec& first, Vec& second) __attribute__((always_inline)) {
                const index_t at = row * g.channels + c;
                const Vec centred = load_at<E>(g.x, at, n) - load_first(g.mean + c, n);
                first = masked<E, relu.value>(g, at, c, n, centred);
                second = first * centred;
            },
            g.rows, g.channels, args.scratch, args.sums);
    });
}

// Writes what `value(at, c, n)` gives for n channels from c on, element `at` of y; two vectors at once where there are.
template <class E, class Value>
[[gnu::always_inline]] inline void store_rows(void* data, index_t rows, index_t channels, const Value& value) {
    auto* const y = static_cast<typename E::Storage*>(data);
    for (index_t row = 0, at = 0; row < rows; ++row, at += channels) {
        index_t c = 0;
        for (; c + 2 * kVectorFloats <= channels; c += 2 * kVectorFloats) {
            const Vec first = value(at + c, c, kVectorFloats);
            E::store_two(y + at + c, first, value(at + c + kVectorFloats, c + kVectorFloats, kVectorFloats));
        }
        for (; c < channels; c += kVectorFloats) {
            const index_t n = at_most(kVectorFloats, channels - c);
            E::store_first(y + at + c, value(at + c, c, n), n);
        }
    }
}

// In vectors that are rounded once: activated before they are stored. Others are activated row by row.
template <class E, bool Multiplies, bool Adds, bool Activates>
inline void norm_apply_as(const NormApplyArgs& g) {
    const Vec floor = broadcast(g.floor);
    const auto* x = static_cast<const typename E::Storage*>(g.x);
    const auto* product = static_cast<const typename E::Storage*>(g.product);
    const auto* residual = static_cast<const typename E::Storage*>(g.residual);
    auto* y = static_cast<typename E::Storage*>(g.y);
    constexpr bool kRounds = !std::is_same_v<E, Fp32>;
    for (index_t row = 0; row < g.rows; ++row, x += g.x_pixel, y += g.y_pixel) {
        store_rows<E>(y, 1, g.channels, [&](index_t, index_t c, index_t n) __attribute__((always_inline)) {
            Vec v = (load_at<E>(x, c, n) - load_first(g.mean + c, n)) * load_first(g.scale + c, n) +
                    load_first(g.bias + c, n);
            if constexpr (Multiplies) v *= load_at<E>(product, c, n);
            if constexpr (Adds) v += load_at<E>(residual, c, n);
            v = clamp_below(v, floor);
            if constexpr (Activates && kRounds) v = activated(g.activation, v, c);
            return v;
        });
        if constexpr (Activates && !kRounds) activate<E>({g.activation, y, 1, g.channels, g.channels});
        if constexpr (Multiplies) product += g.product_pixel;
        if constexpr (Adds) residual += g.residual_pixel;
    }
}

template <class E>
void norm_apply(const NormApplyArgs& g) {
    const bool activates = g.activation.kind != Activation::none;
    if (g.product) {
        if (activates)
            return g.residual ? norm_apply_as<E, true, true, true>(g) : norm_apply_as<E, true, false, true>(g);
        return g.residual ? norm_apply_as<E, true, true, false>(g) : norm_apply_as<E, true, false, false>(g);
    }
    if (activates) return g.residual ? norm_apply_as<E, false, true, true>(g) : norm_apply_as<E, false, false, true>(g);
    g.residual ? norm_apply_as<E, false, true, false>(g) : norm_apply_as<E, false, false, false>(g);
}

template <class E>
void norm_grad(const NormGradArgs& args) {
    const NormGrad& g = args.g;
    auto* const dresidual = static_cast<typename E::Storage*>(args.dresidual);
    for_relu_of(g, [&](auto relu) {
        store_rows<E>(args.dx, g.rows, g.channels,
                      [&](index_t at, index_t c, index_t n) __attribute__((always_inline)) {
                          const Vec centred = load_at<E>(g.x, at, n) - load_first(g.mean + c, n);
                          const Vec grad = masked<E, relu.value>(g, at, c, n, centred);
                          const Vec of_x = load_first(args.of_x + c, n) * centred + load_first(args.constant + c, n);
                          if (dresidual) E::store_first(dresidual + at, grad, n);
                          return load_first(args.of_grad + c, n) * grad + of_x;
                      });
    });
}

}  // namespace
}  // namespace resfuse
