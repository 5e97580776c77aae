// Winograd convolution transforms F(2x2, 3x3) and F(4x4, 3x3) (Lavin & Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2015). F(4,3) uses the interpolation points 0, +-1/sqrt(2), +-sqrt(2), infinity: their matrices keep the
// even/odd symmetry that makes the transforms cheap and halve the rounding error of the usual 0, +-1, +-2.
#pragma once

#include "kernels/gemm.h"

namespace resfuse {
namespace {

constexpr double kSqrt2 = 1.41421356237309504880;

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

    static inline void input(const Vec* d, int stride, Vec* v) {
        const Vec d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride],
                  d5 = d[5 * stride];
        const Vec a = broadcast(static_cast<float>(kSqrt2 / 2)), b = broadcast(static_cast<float>(kSqrt2));
        v[0] = d0 - 2.5f * d2 + d4;
        const Vec even_a = d4 - 2.0f * d2, odd_a = d3 - 2.0f * d1;
        v[1] = even_a + a * odd_a;
        v[2] = even_a - a * odd_a;
        const Vec even_b = d4 - 0.5f * d2, odd_b = d3 - 0.5f * d1;
        v[3] = even_b + b * odd_b;
        v[4] = even_b - b * odd_b;
        v[5] = d1 - 2.5f * d3 + d5;
    }
    static inline void output(const Vec* m, int stride, Vec* y) {
        const Vec a = broadcast(static_cast<float>(kSqrt2 / 2)), b = broadcast(static_cast<float>(kSqrt2));
        const Vec even_a = m[stride] + m[2 * stride], odd_a = a * (m[stride] - m[2 * stride]);
        const Vec even_b = m[3 * stride] + m[4 * stride], odd_b = b * (m[3 * stride] - m[4 * stride]);
        y[0] = m[0] + even_a + even_b;
        y[1] = odd_a + odd_b;
        y[2] = 0.5f * even_a + 2.0f * even_b;
        y[3] = 0.5f * odd_a + 2.0f * odd_b + m[5 * stride];
    }
    // Row of point p: (1, p, p^2) / product of (p - other points); the last row is the point at infinity.
    static constexpr double weight[6][3] = {{1, 0, 0},
                                            {-2.0 / 3, -kSqrt2 / 3, -1.0 / 3},
                                            {-2.0 / 3, kSqrt2 / 3, -1.0 / 3},
                                            {1.0 / 6, kSqrt2 / 6, 1.0 / 3},
                                            {1.0 / 6, -kSqrt2 / 6, 1.0 / 3},
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
                const index_t at = ((y0 + i) * g.width + x0) * g.pixel + k;
#pragma GCC unroll 4
                for (int j = 0; j < F::out; ++j) {
                    if (j >= cols) break;
                    Vec v = y[j] + bias;
                    if (g.residual) v += load_first(g.residual + at + j * g.pixel, n);
                    store_first(g.y + at + j * g.pixel, clamp_below(v, floor), n);
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
                    t[i][s][k] = F::weight[i][0] * w[s][k] + F::weight[i][1] * w[3 + s][k] + F::weight[i][2] * w[6 + s][k];
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
