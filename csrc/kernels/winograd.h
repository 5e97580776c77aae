// Winograd convolution transforms F(2x2, 3x3) and F(4x4, 3x3) (Lavin & Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2015). F(4,3) uses the interpolation points 0, +-5/8, +-3/2, infinity. Pairs +-p keep the even/odd
// symmetry that makes the transforms cheap; points near +-1/sqrt(2), +-sqrt(2) halve the rounding error of the usual
// +-1, +-2; and they must be exact in fp32: with rounded square roots the three matrices no longer fit each other,
// which costs three times the error (measured, see docs/accuracy.md).
#pragma once

#include "kernels/gemm.h"

namespace resfuse {
namespace {

struct F2x2 {
    static constexpr int out = 2;
    static constexpr int in = 4;

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
    static constexpr double weight[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
};

struct F4x4 {
    static constexpr int out = 4;
    static constexpr int in = 6;

    static constexpr double p = 5.0 / 8, p2 = p * p;
    static constexpr double q = 3.0 / 2, q2 = q * q;

    static inline Vec constant(double x) { return broadcast(static_cast<float>(x)); }

    static inline void input(const Vec* d, int stride, Vec* v) {
        const Vec d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride],
                  d5 = d[5 * stride];
        const Vec product = constant(p2 * q2), sum = constant(p2 + q2);
        v[0] = product * d0 + (d4 - sum * d2);
        v[5] = product * d1 + (d5 - sum * d3);
        const Vec even_p = d4 - constant(q2) * d2, odd_p = d3 - constant(q2) * d1;
        v[1] = even_p + constant(p) * odd_p;
        v[2] = even_p - constant(p) * odd_p;
        const Vec even_q = d4 - constant(p2) * d2, odd_q = d3 - constant(p2) * d1;
        v[3] = even_q + constant(q) * odd_q;
        v[4] = even_q - constant(q) * odd_q;
    }
    static inline void output(const Vec* m, int stride, Vec* y) {
        const Vec even_p = m[stride] + m[2 * stride], odd_p = constant(p) * (m[stride] - m[2 * stride]);
        const Vec even_q = m[3 * stride] + m[4 * stride], odd_q = constant(q) * (m[3 * stride] - m[4 * stride]);
        y[0] = m[0] + even_p + even_q;
        y[1] = odd_p + odd_q;
        y[2] = constant(p2) * even_p + constant(q2) * even_q;
        y[3] = constant(p2) * odd_p + constant(q2) * odd_q + m[5 * stride];
    }
    // Row of point x: (1, x, x^2) / product of (x - other points); the last row is the point at infinity.
    static constexpr double over_p = 1 / (2 * p2 * (p2 - q2)), over_q = 1 / (2 * q2 * (q2 - p2));
    static constexpr double weight[6][3] = {{1 / (p2 * q2), 0, 0},
                                            {over_p, over_p * p, over_p * p2},
                                            {over_p, -over_p * p, over_p * p2},
                                            {over_q, over_q * q, over_q * q2},
                                            {over_q, -over_q * q, over_q * q2},
                                            {0, 0, 1}};
};

template <class F>
inline void transform_input_vector(const Vec* d, float* v, index_t frequency_stride, index_t n) {
    Vec t[F::in * F::in];
#pragma GCC unroll 6
    for (int j = 0; j < F::in; ++j) {
        Vec column[F::in];
        F::input(d + j, F::in, column);
        for (int i = 0; i < F::in; ++i) t[i * F::in + j] = column[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < F::in; ++i) {
        Vec row[F::in];
        F::input(t + i * F::in, 1, row);
        for (int j = 0; j < F::in; ++j) store_first(v + (i * F::in + j) * frequency_stride, row[j], n);
    }
}

template <class F>
void winograd_input(const WinogradInputArgs& g) {
    for (index_t t = 0; t < g.tiles; ++t) {
        const index_t tile = g.first_tile + t;
        const index_t y0 = tile / g.tiles_per_row * F::out - g.pad_top;
        const index_t x0 = tile % g.tiles_per_row * F::out - g.pad_left;
        const float* pixel[F::in * F::in];
        for (int i = 0; i < F::in; ++i) {
            const index_t y = y0 + i;
            const bool row_inside = y >= 0 && y < g.image.height;
            for (int j = 0; j < F::in; ++j) {
                const index_t x = x0 + j;
                const bool inside = row_inside && x >= 0 && x < g.image.width;
                pixel[i * F::in + j] = inside ? g.image.data + y * g.image.row + x * g.image.pixel : g.zeros;
            }
        }
        float* v = g.v + t * g.channels;
        Vec d[F::in * F::in];
        index_t c = 0;
        for (; c + kVectorFloats <= g.channels; c += kVectorFloats) {
#pragma GCC unroll 36
            for (int i = 0; i < F::in * F::in; ++i) d[i] = load(pixel[i] + c);
            transform_input_vector<F>(d, v + c, g.frequency_stride, kVectorFloats);
        }
        if (c < g.channels) {
            for (int i = 0; i < F::in * F::in; ++i) d[i] = load_first(pixel[i] + c, g.channels - c);
            transform_input_vector<F>(d, v + c, g.frequency_stride, g.channels - c);
        }
    }
}

template <class F>
void winograd_output(const WinogradOutputArgs& g) {
    const Vec floor = broadcast(g.floor);
    for (index_t t = 0; t < g.tiles; ++t) {
        const index_t tile = g.first_tile + t;
        const index_t y0 = tile / g.tiles_per_row * F::out;
        const index_t x0 = tile % g.tiles_per_row * F::out;
        const index_t rows = g.height - y0 < F::out ? g.height - y0 : F::out;
        const index_t cols = g.width - x0 < F::out ? g.width - x0 : F::out;
        for (index_t k = 0; k < g.cols; k += kVectorFloats) {
            const index_t n = g.cols - k < kVectorFloats ? g.cols - k : kVectorFloats;
            const float* m = g.m + t * g.tile_stride + k;
            Vec half[F::out * F::in];
#pragma GCC unroll 6
            for (int j = 0; j < F::in; ++j) {
                Vec column[F::in], transformed[F::out];
                for (int i = 0; i < F::in; ++i) column[i] = load(m + (i * F::in + j) * g.frequency_stride);
                F::output(column, 1, transformed);
                for (int i = 0; i < F::out; ++i) half[i * F::in + j] = transformed[i];
            }
            const Vec bias = g.bias ? load(g.bias + k) : zero();
#pragma GCC unroll 4
            for (int i = 0; i < F::out; ++i) {
                if (i >= rows) break;
                Vec y[F::out];
                F::output(half + i * F::in, 1, y);
                const index_t first = (y0 + i) * g.width + x0;
#pragma GCC unroll 4
                for (int j = 0; j < F::out; ++j) {
                    if (j >= cols) break;
                    Vec v = y[j] + bias;
                    if (g.residual) v += load_first(g.residual + (first + j) * g.residual_pixel + k, n);
                    store_first(g.y + (first + j) * g.pixel + k, clamp_below(v, floor), n);
                }
            }
        }
    }
}

// U = G w G^T, computed in double precision from the scaled weights and rounded once.
template <class F>
void pack_winograd(const PackPanelArgs& g) {
    for (index_t c = 0; c < g.channels; ++c) {
        double w[9][kTileCols] = {};
        for (index_t k = 0; k < g.cols; ++k) {
            const float* kernel = g.weight + (g.first_k + k) * g.stride_k + c * g.stride_c;
            const double scale = g.scale ? g.scale[g.first_k + k] : 1.0;
            for (int r = 0; r < 3; ++r)
                for (int s = 0; s < 3; ++s) w[r * 3 + s][k] = scale * kernel[r * g.stride_h + s * g.stride_w];
        }
        double t[F::in][3][kTileCols];
        for (int i = 0; i < F::in; ++i)
            for (int s = 0; s < 3; ++s)
                for (int k = 0; k < kTileCols; ++k)
                    t[i][s][k] =
                        F::weight[i][0] * w[s][k] + F::weight[i][1] * w[3 + s][k] + F::weight[i][2] * w[6 + s][k];
        for (int i = 0; i < F::in; ++i)
            for (int j = 0; j < F::in; ++j) {
                float* u = g.packed + ((i * F::in + j) * g.channels + c) * kTileCols;
                for (int k = 0; k < kTileCols; ++k)
                    u[k] = static_cast<float>(F::weight[j][0] * t[i][0][k] + F::weight[j][1] * t[i][1][k] +
                                              F::weight[j][2] * t[i][2][k]);
            }
    }
}

}  // namespace
}  // namespace resfuse
