// Winograd convolution transforms F(2x2, 3x3), F(4x4, 3x3) and, for stride 2, F(4x4, 2x2) of the four phases (Lavin &
// Gray, "Fast Algorithms for Convolutional Neural Networks", 2015). F(4,3) uses the interpolation points 0, +-5/8,
// +-3/2, infinity, F(4,2) +-3/8, +-5/4, infinity. Pairs +-p keep the even/odd symmetry that makes the transforms cheap;
// points with products near 1 halve the rounding error of the usual +-1, +-2 (of all small multiples of 1/8 these gave
// the least); and they must be exact in fp32: with rounded square roots the three matrices no longer fit each other,
// which costs three times the error (measured, see docs/accuracy.md).
#pragma once

#include "kernels/gemm.h"

namespace resfuse {
namespace {

// One dimension of a tile: `out` outputs from `in` inputs through the products at some of the interpolation points,
// `points` numbers of the whole set. A tile at the edge of the image that has fewer outputs needs fewer points. Leaving
// out point z takes the factor (x - z) out of the weight of every other point x; the input transform puts it back, so
// tiles of all kinds share one set of transformed weights.

// F(2, 3), points 0, 1, -1, infinity.
struct F2 {
    static constexpr int out = 2, in = 4;
    static constexpr int points[in] = {0, 1, 2, 3};

    static inline void input(const Vec* d, int stride, Vec* v) {
        v[0] = d[0] - d[2 * stride];
        v[1] = d[stride] + d[2 * stride];
        v[2] = d[2 * stride] - d[stride];
        v[3] = d[stride] - d[3 * stride];
    }
    static inline void output(const Vec* m, int stride, Vec* y) {
        const Vec sum = m[stride] + m[2 * stride];
        const Vec difference = m[stride] - m[2 * stride];
        y[0] = m[0] + sum;
        y[1] = difference - m[3 * stride];
    }
};

inline Vec constant(double x) { return broadcast(static_cast<float>(x)); }

// The points +-p, +-q of a set, and how a pair of them turns even and odd parts into products and back.
template <int P, int Q>
struct PointPairs {
    static constexpr double p = P / 8.0, p2 = p * p, p3 = p2 * p;
    static constexpr double q = Q / 8.0, q2 = q * q, q3 = q2 * q;

    struct Parts {
        Vec even_p, odd_p, even_q, odd_q;
    };
    static inline void input(const Parts& d, Vec* v) {
        v[0] = d.even_p + constant(p) * d.odd_p;
        v[1] = d.even_p - constant(p) * d.odd_p;
        v[2] = d.even_q + constant(q) * d.odd_q;
        v[3] = d.even_q - constant(q) * d.odd_q;
    }
    static inline Parts output(const Vec* m, int stride) {
        return {m[0] + m[stride], m[0] - m[stride], m[2 * stride] + m[3 * stride], m[2 * stride] - m[3 * stride]};
    }
    // The powers of the points times y0 ... y3: the adjoint of four outputs.
    static inline void gradient(const Vec* y, int stride, Vec* m) {
        const Vec y0 = y[0], y1 = y[stride], y2 = y[2 * stride], y3 = y[3 * stride];
        input({y0 + constant(p2) * y2, y1 + constant(p2) * y3, y0 + constant(q2) * y2, y1 + constant(q2) * y3}, m);
    }
    // (x^2 - p^2) (x^2 - q^2), the product at infinity of five inputs.
    static inline Vec infinity(Vec d0, Vec d2, Vec d4) {
        return constant(p2 * q2) * d0 + (d4 - constant(p2 + q2) * d2);
    }
};

// F(4, 3), points 0, p, -p, q, -q, infinity.
using F4Pairs = PointPairs<5, 12>;

struct F4 {
    static constexpr int out = 4, in = 6;
    static constexpr int points[in] = {0, 1, 2, 3, 4, 5};

    static inline void input(const Vec* d, int stride, Vec* v) {
        using P = F4Pairs;
        const Vec d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride],
                  d5 = d[5 * stride];
        v[0] = P::infinity(d0, d2, d4);
        P::input({d4 - constant(P::q2) * d2, d3 - constant(P::q2) * d1, d4 - constant(P::p2) * d2,
                  d3 - constant(P::p2) * d1},
                 v + 1);
        v[5] = P::infinity(d1, d3, d5);
    }
    static inline void output(const Vec* m, int stride, Vec* y) {
        using P = F4Pairs;
        const auto [even_p, odd_p, even_q, odd_q] = P::output(m + stride, stride);
        y[0] = m[0] + even_p + even_q;
        y[1] = constant(P::p) * odd_p + constant(P::q) * odd_q;
        y[2] = constant(P::p2) * even_p + constant(P::q2) * even_q;
        y[3] = constant(P::p3) * odd_p + constant(P::q3) * odd_q + m[5 * stride];
    }
    // The output transform's adjoint.
    static inline void gradient(const Vec* y, int stride, Vec* m) {
        m[0] = y[0];
        F4Pairs::gradient(y, stride, m + 1);
        m[5] = y[3 * stride];
    }
};

// F(2, 3), without the points 0 and infinity.
struct F4Edge2 {
    static constexpr int out = 2, in = 4;
    static constexpr int points[in] = {1, 2, 3, 4};

    static inline void input(const Vec* d, int stride, Vec* v) {
        using P = F4Pairs;
        const Vec d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride];
        P::input({constant(P::p2) * d2 - constant(P::p2 * P::q2) * d0, d3 - constant(P::q2) * d1,
                  constant(P::q2) * d2 - constant(P::p2 * P::q2) * d0, d3 - constant(P::p2) * d1},
                 v);
    }
    static inline void output(const Vec* m, int stride, Vec* y) {
        const auto [even_p, odd_p, even_q, odd_q] = F4Pairs::output(m, stride);
        y[0] = even_p + even_q;
        y[1] = constant(F4Pairs::p) * odd_p + constant(F4Pairs::q) * odd_q;
    }
};

// F(3, 3), without the point 0.
struct F4Edge3 {
    static constexpr int out = 3, in = 5;
    static constexpr int points[in] = {1, 2, 3, 4, 5};

    static inline void input(const Vec* d, int stride, Vec* v) {
        F4Edge2::input(d, stride, v);
        v[4] = F4Pairs::infinity(d[0], d[2 * stride], d[4 * stride]);
    }
    static inline void output(const Vec* m, int stride, Vec* y) {
        F4Edge2::output(m, stride, y);
        y[2] = constant(F4Pairs::p2) * (m[0] + m[stride]) + constant(F4Pairs::q2) * (m[2 * stride] + m[3 * stride]) +
               m[4 * stride];
    }
};

// F(4, 2), points p, -p, q, -q, infinity.
using H4Pairs = PointPairs<3, 10>;

// F(3, 2), without infinity.
struct H4Edge3 {
    static constexpr int out = 3, in = 4;
    static constexpr int points[in] = {0, 1, 2, 3};

    static inline void input(const Vec* d, int stride, Vec* v) {
        using P = H4Pairs;
        const Vec d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride];
        P::input({d3 - constant(P::q2) * d1, d2 - constant(P::q2) * d0, d3 - constant(P::p2) * d1,
                  d2 - constant(P::p2) * d0},
                 v);
    }
    static inline void output(const Vec* m, int stride, Vec* y) {
        using P = H4Pairs;
        const auto [even_p, odd_p, even_q, odd_q] = P::output(m, stride);
        y[0] = even_p + even_q;
        y[1] = constant(P::p) * odd_p + constant(P::q) * odd_q;
        y[2] = constant(P::p2) * even_p + constant(P::q2) * even_q;
    }
};

struct H4 {
    static constexpr int out = 4, in = 5;
    static constexpr int points[in] = {0, 1, 2, 3, 4};

    static inline void input(const Vec* d, int stride, Vec* v) {
        H4Edge3::input(d, stride, v);
        v[4] = H4Pairs::infinity(d[0], d[2 * stride], d[4 * stride]);
    }
    static inline void output(const Vec* m, int stride, Vec* y) {
        H4Edge3::output(m, stride, y);
        y[3] = constant(H4Pairs::p3) * (m[0] - m[stride]) + constant(H4Pairs::q3) * (m[2 * stride] - m[3 * stride]) +
               m[4 * stride];
    }
};

// F(2, 2), without the points q and -q.
struct H4Edge2 {
    static constexpr int out = 2, in = 3;
    static constexpr int points[in] = {0, 1, 4};

    static inline void input(const Vec* d, int stride, Vec* v) {
        using P = H4Pairs;
        const Vec d0 = d[0], d1 = d[stride], d2 = d[2 * stride];
        const Vec even = constant(P::p2 - P::q2) * d1, odd = constant((P::p2 - P::q2) * P::p) * d0;
        v[0] = even + odd;
        v[1] = even - odd;
        v[2] = d2 - constant(P::p2) * d0;
    }
    static inline void output(const Vec* m, int stride, Vec* y) {
        y[0] = m[0] + m[stride];
        y[1] = constant(H4Pairs::p) * (m[0] - m[stride]) + m[2 * stride];
    }
};

// What tiles of one kind have in common. Weight row of point x: (1, x, ...) / product of (x - other points); the last
// row is the point at infinity.
struct F2x2 {
    using Full = F2;
    static constexpr int stride = 1;
    static constexpr double weight[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
};

struct F4x4 {
    using Full = F4;
    using Edge3 = F4Edge3;
    using Edge2 = F4Edge2;
    static constexpr int stride = 1;
    static constexpr double p = F4Pairs::p, p2 = F4Pairs::p2, q = F4Pairs::q, q2 = F4Pairs::q2;
    static constexpr double over_p = 1 / (2 * p2 * (p2 - q2)), over_q = 1 / (2 * q2 * (q2 - p2));
    static constexpr double weight[6][3] = {{1 / (p2 * q2), 0, 0},
                                            {over_p, over_p * p, over_p * p2},
                                            {over_p, -over_p * p, over_p * p2},
                                            {over_q, over_q * q, over_q * q2},
                                            {over_q, -over_q * q, over_q * q2},
                                            {0, 0, 1}};
};

// Stride 2: the four phases of the image (even and odd rows and columns) are four images of stride 1, whose taps in one
// dimension are {0, 2} for the even phase and {1} for the odd one (a second tap is zero). Their products add up, so the
// phases are four times as many channels of one F(4x4, 2x2).
struct H4x4 {
    using Full = H4;
    using Edge3 = H4Edge3;
    using Edge2 = H4Edge2;
    static constexpr int stride = 2;
    static constexpr double p = H4Pairs::p, q = H4Pairs::q;
    static constexpr double over_p = 1 / (2 * p * (p * p - q * q)), over_q = 1 / (2 * q * (q * q - p * p));
    static constexpr double weight[5][2] = {
        {over_p, over_p * p}, {-over_p, over_p * p}, {over_q, over_q * q}, {-over_q, over_q * q}, {0, 1}};
};

// One vector of channels of a tile of R rows and C columns of outputs; pixel(i) loads input pixel i.
template <class R, class C, class Pixel>
[[gnu::always_inline]] inline void transform_input_vector(Pixel pixel, float* v, index_t frequency_stride, int points,
                                                          index_t n) {
    Vec t[R::in * C::in];
#pragma GCC unroll 6
    for (int j = 0; j < C::in; ++j) {
        Vec d[R::in], column[R::in];
#pragma GCC unroll 6
        for (int i = 0; i < R::in; ++i) d[i] = pixel(i * C::in + j);
        R::input(d, 1, column);
#pragma GCC unroll 6
        for (int i = 0; i < R::in; ++i) t[i * C::in + j] = column[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < R::in; ++i) {
        Vec row[C::in];
        C::input(t + i * C::in, 1, row);
#pragma GCC unroll 6
        for (int j = 0; j < C::in; ++j) {
            float* const to = v + (R::points[i] * points + C::points[j]) * frequency_stride;
            // The next vector's line: more streams than the hardware follows.
            __builtin_prefetch(to + kLineFloats);
            store_first(to, row[j], n);
        }
    }
}

// One phase of one tile. `points` are those of a whole tile in one dimension.
template <class R, class C>
inline void transform_input_tile(const WinogradInputArgs& g, const float* const* pixel, int points, float* v) {
    for (index_t group = 0; group < g.groups; ++group, v += g.group_stride) {
        const index_t first = group * g.channels;
        index_t c = 0;
        for (; c + kVectorFloats <= g.channels; c += kVectorFloats)
            transform_input_vector<R, C>([&](int i) { return load(pixel[i] + first + c); }, v + c, g.frequency_stride,
                                         points, kVectorFloats);
        if (const index_t n = g.channels - c; n > 0)
            transform_input_vector<R, C>([&](int i) { return load_first(pixel[i] + first + c, n); }, v + c,
                                         g.frequency_stride, points, n);
    }
}

template <class F, class R, class C>
void winograd_input(const WinogradInputArgs& g) {
    constexpr index_t phases = F::stride * F::stride;
    for (index_t t = 0; t < g.tiles; ++t) {
        const index_t tile = g.first_tile + t;
        const index_t y0 = tile / g.tiles_per_row * R::out * F::stride - g.pad_top;
        const index_t x0 = tile % g.tiles_per_row * C::out * F::stride - g.pad_left;
        for (index_t phase = 0; phase < phases; ++phase) {
            const index_t phase_y = phase / F::stride, phase_x = phase % F::stride;
            const float* pixel[R::in * C::in];
            for (int i = 0; i < R::in; ++i) {
                const index_t y = y0 + i * F::stride + phase_y;
                // The last input of an odd phase would only meet the tap that is zero.
                const bool row_inside = y >= 0 && y < g.image.height && !(phase_y == 1 && i == R::in - 1);
                for (int j = 0; j < C::in; ++j) {
                    const index_t x = x0 + j * F::stride + phase_x;
                    const bool inside = row_inside && x >= 0 && x < g.image.width && !(phase_x == 1 && j == C::in - 1);
                    pixel[i * C::in + j] = inside ? g.image.data + y * g.image.row + x * g.image.pixel : g.zeros;
                }
            }
            transform_input_tile<R, C>(g, pixel, F::Full::in, g.v + (t * phases + phase) * g.channels);
        }
    }
}

template <class F, class R, class C>
void winograd_output(const WinogradOutputArgs& g) {
    const Vec floor = broadcast(g.floor);
    for (index_t t = 0; t < g.tiles; ++t) {
        const index_t tile = g.first_tile + t;
        const index_t y0 = g.y0 + tile / g.tiles_per_row * R::out;
        const index_t x0 = g.x0 + tile % g.tiles_per_row * C::out;
        const index_t rows = g.height - y0 < R::out ? g.height - y0 : R::out;
        const index_t cols = g.width - x0 < C::out ? g.width - x0 : C::out;
        for (index_t k = 0; k < g.cols; k += kVectorFloats) {
            const index_t n = g.cols - k < kVectorFloats ? g.cols - k : kVectorFloats;
            const float* m = g.m + t * g.tile_stride + k;
            Vec half[R::out * C::in];
#pragma GCC unroll 6
            for (int j = 0; j < C::in; ++j) {
                Vec column[R::in], transformed[R::out];
#pragma GCC unroll 6
                for (int i = 0; i < R::in; ++i)
                    column[i] = load(m + (R::points[i] * F::Full::in + C::points[j]) * g.frequency_stride);
                R::output(column, 1, transformed);
                for (int i = 0; i < R::out; ++i) half[i * C::in + j] = transformed[i];
            }
            const Vec bias = g.bias ? load(g.bias + k) : zero();
#pragma GCC unroll 4
            for (int i = 0; i < R::out; ++i) {
                if (i >= rows) break;
                Vec y[C::out];
                C::output(half + i * C::in, 1, y);
                const index_t first = (y0 + i) * g.width + x0;
#pragma GCC unroll 4
                for (int j = 0; j < C::out; ++j) {
                    if (j >= cols) break;
                    Vec v = y[j] + bias;
                    if (g.residual) v += load_first(g.residual + (first + j) * g.residual_pixel + k, n);
                    store_first(g.y + (first + j) * g.pixel + k, clamp_below(v, floor), n);
                }
            }
        }
    }
}

// Half as many doubles as a Vec has floats, and the floats that they become.
constexpr int kVectorDoubles = kVectorFloats / 2;
typedef double VecDouble __attribute__((vector_size(kVectorDoubles * sizeof(double))));
typedef float VecHalf __attribute__((vector_size(kVectorDoubles * sizeof(float))));

// U = G w G^T of kVectorDoubles channels, computed in double precision and rounded once.
template <class F, int Taps>
inline void transform_weights(const VecDouble (&w)[Taps][Taps], float* u, index_t frequency_stride) {
    constexpr int in = F::Full::in;
    VecDouble t[in][Taps];
#pragma GCC unroll 6
    for (int i = 0; i < in; ++i)
#pragma GCC unroll 3
        for (int s = 0; s < Taps; ++s) {
            t[i][s] = VecDouble{};
#pragma GCC unroll 3
            for (int r = 0; r < Taps; ++r)
                if (F::weight[i][r] != 0.0) t[i][s] += F::weight[i][r] * w[r][s];
        }
#pragma GCC unroll 6
    for (int i = 0; i < in; ++i)
#pragma GCC unroll 6
        for (int j = 0; j < in; ++j) {
            VecDouble sum{};
#pragma GCC unroll 3
            for (int s = 0; s < Taps; ++s)
                if (F::weight[j][s] != 0.0) sum += F::weight[j][s] * t[i][s];
            const VecHalf rounded = __builtin_convertvector(sum, VecHalf);
            std::memcpy(u + (i * in + j) * frequency_stride, &rounded, sizeof rounded);
        }
}

// Scaled weights, transformed. Of stride 2: phase by phase, each with its taps of the 3 x 3 window.
template <class F>
void pack_winograd(const PackPanelArgs& g) {
    constexpr int stride = F::stride, taps = stride == 1 ? 3 : 2;
    constexpr index_t phases = stride * stride;
    double scale[kTileCols] = {};
    for (index_t k = 0; k < g.cols; ++k) scale[k] = g.scale ? g.scale[g.first_k + k] : 1.0;
    for (index_t phase = 0; phase < phases; ++phase)
        for (index_t c = 0; c < g.channels; ++c) {
            double w[taps][taps][kTileCols] = {};
            for (index_t k = 0; k < g.cols; ++k) {
                const float* kernel = g.weight + (g.first_k + k) * g.stride_k + c * g.stride_c;
#pragma GCC unroll 3
                for (int r = 0; r < taps; ++r)
#pragma GCC unroll 3
                    for (int s = 0; s < taps; ++s) {
                        const index_t y = r * stride + phase / stride, x = s * stride + phase % stride;
                        if (y < 3 && x < 3) w[r][s][k] = kernel[y * g.stride_h + x * g.stride_w];
                    }
            }
            float* const u = g.packed + (phase * g.channels + c) * kTileCols;
            for (int k = 0; k < kTileCols; k += kVectorDoubles) {
                VecDouble factor, part[taps][taps];
                std::memcpy(&factor, scale + k, sizeof factor);
#pragma GCC unroll 3
                for (int r = 0; r < taps; ++r)
#pragma GCC unroll 3
                    for (int s = 0; s < taps; ++s) {
                        std::memcpy(&part[r][s], w[r][s] + k, sizeof factor);
                        part[r][s] *= factor;
                    }
                transform_weights<F, taps>(part, u + k, phases * g.channels * kTileCols);
            }
        }
}

}  // namespace
}  // namespace resfuse
