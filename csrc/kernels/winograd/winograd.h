// Winograd convolution transforms F(2x2, 3x3), F(4x4, 3x3) and, for stride 2, F(4x4, 2x2) of the four phases (Lavin &
// Gray, "Fast Algorithms for Convolutional Neural Networks", 2015). F(4,3) uses the interpolation points 0, +-5/8,
// +-3/2, infinity, F(4,2) +-3/8, +-5/4, infinity. Pairs +-p keep the even/odd symmetry that makes the transforms cheap;
// points with products near 1 halve the rounding error of the usual +-1, +-2 (of all small multiples of 1/8 these gave
// the least); and they must be exact in fp32: with rounded square roots the three matrices no longer fit each other,
// which costs three times the error (measured, see docs/accuracy.md).
#pragma once

#include "kernels/gemm/gemm.h"
#include "kernels/winograd/args.h"

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

// One tap, of the odd phase: the products at four points without infinity, all with one weight, the tap times
// 1 / (2 p q (q^2 - p^2)); what that leaves of each point's own weight is exact.
struct H4Odd {
    static constexpr int out = 4, in = 4;
    static constexpr int points[in] = {0, 1, 2, 3};

    static inline void input(const Vec* d, int stride, Vec* v) {
        using P = H4Pairs;
        constexpr double pq = P::p * P::q;
        const Vec d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride];
        const Vec even_p = constant(pq * P::q2) * d0 - constant(pq) * d2;
        const Vec odd_p = constant(P::q3) * d1 - constant(P::q) * d3;
        const Vec even_q = constant(pq) * d2 - constant(pq * P::p2) * d0;
        const Vec odd_q = constant(P::p) * d3 - constant(P::p3) * d1;
        v[0] = even_p + odd_p;
        v[1] = even_p - odd_p;
        v[2] = even_q + odd_q;
        v[3] = even_q - odd_q;
    }
};

// The same with three outputs, at p, -p, q.
struct H4OddEdge3 {
    static constexpr int out = 3, in = 3;
    static constexpr int points[in] = {0, 1, 2};

    static inline void input(const Vec* d, int stride, Vec* v) {
        using P = H4Pairs;
        constexpr double p = P::p, q = P::q, sum = q * (q + p), difference = q * (q - p);
        const Vec d0 = d[0], d1 = d[stride], d2 = d[2 * stride];
        v[0] = constant(sum * p * q) * d0 + constant(sum * (q - p)) * d1 - constant(sum) * d2;
        v[1] = constant(difference * p * q) * d0 - constant(difference * (q + p)) * d1 + constant(difference) * d2;
        v[2] = constant(2 * p * q) * d2 - constant(2 * P::p3 * q) * d0;
    }
};

// And with two, at p, -p.
struct H4OddEdge2 {
    static constexpr int out = 2, in = 2;
    static constexpr int points[in] = {0, 1};

    static inline void input(const Vec* d, int stride, Vec* v) {
        using P = H4Pairs;
        constexpr double factor = P::q * (P::q2 - P::p2);
        const Vec even = constant(factor * P::p) * d[0], odd = constant(factor) * d[stride];
        v[0] = even + odd;
        v[1] = even - odd;
    }
};

// F(3, 2), without infinity.
struct H4Edge3 {
    using Odd = H4OddEdge3;
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
    using Odd = H4Odd;
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
    using Odd = H4OddEdge2;
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

// Stride 2: the four phases of the image (even and odd rows and columns) are four images of stride 1. In one dimension
// the even one meets the taps 0 and 2, five products for four outputs, the odd one tap 1, four products at the same
// points, so that the products of all phases add up: (5 + 4)^2 = 81 instead of 144 for 16 outputs. The products of an
// odd phase share one weight, the last row.
struct H4x4 {
    using Full = H4;
    using Edge3 = H4Edge3;
    using Edge2 = H4Edge2;
    static constexpr int stride = 2;
    static constexpr double p = H4Pairs::p, p2 = H4Pairs::p2, q = H4Pairs::q, q2 = H4Pairs::q2;
    static constexpr double over_p = 1 / (2 * p * (p2 - q2)), over_q = 1 / (2 * q * (q2 - p2));
    static constexpr double weight[6][3] = {{over_p, 0, over_p * p},
                                            {-over_p, 0, over_p * p},
                                            {over_q, 0, over_q * q},
                                            {-over_q, 0, over_q * q},
                                            {0, 0, 1},
                                            {0, 1 / (2 * p * q * (q2 - p2)), 0}};
};

// Rows of weights of a kind of tile.
template <class F>
constexpr int kWeightPoints = static_cast<int>(sizeof F::weight / sizeof F::weight[0]);

// How far from a tile the one behind it lies, which is fetched meanwhile; from the last one: nowhere.
template <class R, class C>
inline index_t next_tile(index_t tile, bool more, index_t tiles_per_row, index_t row, index_t pixel) {
    if (!more) return 0;
    const bool same_row = (tile + 1) % tiles_per_row != 0;
    return same_row ? C::out * pixel : R::out * row - (tiles_per_row - 1) * C::out * pixel;
}

// A tile's pixels: where they lie, and how far from there the next tile's.
template <class E, class R, class C>
struct TilePixels {
    const typename E::Storage* at[R::in * C::in];
    index_t next;
};

// One vector of channels of a tile of R rows and C columns of outputs. Fetches the columns that the next tile does not
// share with it, into L2: of many channels L1 would not hold them beside V.
template <class E, class R, class C>
[[gnu::always_inline]] inline void transform_input_vector(const TilePixels<E, R, C>& pixels, index_t channel, index_t n,
                                                          float* v, index_t frequency_stride, int points) {
    Vec t[R::in * C::in];
#pragma GCC unroll 6
    for (int j = 0; j < C::in; ++j) {
        Vec d[R::in], column[R::in];
#pragma GCC unroll 6
        for (int i = 0; i < R::in; ++i) {
            const auto* const pixel = pixels.at[i * C::in + j] + channel;
            d[i] = E::load_first(pixel, n);
            if (j >= C::in - C::out) __builtin_prefetch(pixel + pixels.next, 0, 2);
        }
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

// One tile. `points` are those of a whole tile in one dimension.
template <class E, class R, class C>
inline void transform_input_tile(const WinogradInputArgs& g, const TilePixels<E, R, C>& pixels, int points, float* v) {
    for (index_t group = 0; group < g.groups; ++group, v += g.group_stride) {
        const index_t first = group * g.channels;
        index_t c = 0;
        for (; c + kVectorFloats <= g.channels; c += kVectorFloats)
            transform_input_vector(pixels, first + c, kVectorFloats, v + c, g.frequency_stride, points);
        if (const index_t n = g.channels - c; n > 0)
            transform_input_vector(pixels, first + c, n, v + c, g.frequency_stride, points);
    }
}

// Tiles of R rows and C columns of every F::stride-th pixel, from (phase_y, phase_x) on.
template <class E, class F, class R, class C>
void transform_input_tiles(const WinogradInputArgs& g, index_t phase_y, index_t phase_x) {
    using Storage = typename E::Storage;
    const Storage* const image = static_cast<const Storage*>(g.image.data);
    const Storage* const zeros = static_cast<const Storage*>(g.zeros);
    for (index_t t = 0; t < g.tiles; ++t) {
        const index_t tile = g.first_tile + t;
        const index_t y0 = tile / g.tiles_per_row * R::out * F::stride - g.pad_top + phase_y;
        const index_t x0 = tile % g.tiles_per_row * C::out * F::stride - g.pad_left + phase_x;
        TilePixels<E, R, C> pixels;
        pixels.next =
            next_tile<R, C>(tile, t + 1 < g.tiles, g.tiles_per_row, F::stride * g.image.row, F::stride * g.image.pixel);
        for (int i = 0; i < R::in; ++i) {
            const index_t y = y0 + i * F::stride;
            const bool row_inside = y >= 0 && y < g.image.height;
            for (int j = 0; j < C::in; ++j) {
                const index_t x = x0 + j * F::stride;
                const bool inside = row_inside && x >= 0 && x < g.image.width;
                pixels.at[i * C::in + j] = inside ? image + y * g.image.row + x * g.image.pixel : zeros;
            }
        }
        transform_input_tile(g, pixels, F::Full::in, g.v + t * g.channels);
    }
}

template <class E, class F, class R, class C>
void winograd_input(const WinogradInputArgs& g) {
    if constexpr (F::stride == 1) {
        transform_input_tiles<E, F, R, C>(g, 0, 0);
    } else {
        if (g.phase == 0) transform_input_tiles<E, F, R, C>(g, 0, 0);
        if (g.phase == 1) transform_input_tiles<E, F, R, typename C::Odd>(g, 0, 1);
        if (g.phase == 2) transform_input_tiles<E, F, typename R::Odd, C>(g, 1, 0);
        if (g.phase == 3) transform_input_tiles<E, F, typename R::Odd, typename C::Odd>(g, 1, 1);
    }
}

template <class E, class F, class R, class C>
void winograd_output(const WinogradOutputArgs& g) {
    using Storage = typename E::Storage;
    const Vec floor = broadcast(g.floor);
    for (index_t t = 0; t < g.tiles; ++t) {
        const index_t tile = g.first_tile + t;
        const index_t y0 = g.y0 + tile / g.tiles_per_row * R::out;
        const index_t x0 = g.x0 + tile % g.tiles_per_row * C::out;
        const index_t rows = g.height - y0 < R::out ? g.height - y0 : R::out;
        const index_t cols = g.width - x0 < C::out ? g.width - x0 : C::out;
        const index_t next = next_tile<R, C>(tile, t + 1 < g.tiles, g.tiles_per_row, g.width, 1);
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
                    if (g.residual) {
                        const Storage* const residual =
                            static_cast<const Storage*>(g.residual) + (first + j) * g.residual_pixel + k;
                        __builtin_prefetch(residual + next * g.residual_pixel);
                        v += E::load_first(residual, n);
                    }
                    Storage* const to = static_cast<Storage*>(g.y) + (first + j) * g.pixel + k;
                    __builtin_prefetch(to + next * g.pixel, 1);
                    E::store_first(to, clamp_below(v, floor), n);
                }
            }
        }
    }
}

// U = G w G^T of kVectorDoubles channels, computed in double precision and rounded once.
template <class F>
inline void transform_weights(const VecDouble (&w)[3][3], float* u, index_t matrix_stride) {
    constexpr int points = kWeightPoints<F>;
    VecDouble t[points][3];
#pragma GCC unroll 6
    for (int i = 0; i < points; ++i)
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s) {
            t[i][s] = VecDouble{};
#pragma GCC unroll 3
            for (int r = 0; r < 3; ++r)
                if (F::weight[i][r] != 0.0) t[i][s] += F::weight[i][r] * w[r][s];
        }
#pragma GCC unroll 6
    for (int i = 0; i < points; ++i)
#pragma GCC unroll 6
        for (int j = 0; j < points; ++j) {
            VecDouble sum{};
#pragma GCC unroll 3
            for (int s = 0; s < 3; ++s)
                if (F::weight[j][s] != 0.0) sum += F::weight[j][s] * t[i][s];
            store_rounded(u + (i * points + j) * matrix_stride, sum);
        }
}

// Scaled weights, transformed.
template <class F>
void pack_winograd(const PackPanelArgs& g) {
    double scale[kTileCols] = {};
    for (index_t k = 0; k < g.cols; ++k) scale[k] = g.scale ? g.scale[g.first_k + k] : 1.0;
    for (index_t c = 0; c < g.channels; ++c) {
        double w[3][3][kTileCols] = {};
        for (index_t k = 0; k < g.cols; ++k) {
            const float* kernel = g.weight + (g.first_k + k) * g.stride_k + c * g.stride_c;
#pragma GCC unroll 3
            for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
                for (int s = 0; s < 3; ++s) w[r][s][k] = kernel[r * g.stride_h + s * g.stride_w];
        }
        float* const u = g.packed + c * kTileCols;
        for (int k = 0; k < kTileCols; k += kVectorDoubles) {
            VecDouble factor, part[3][3];
            std::memcpy(&factor, scale + k, sizeof factor);
#pragma GCC unroll 3
            for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
                for (int s = 0; s < 3; ++s) {
                    std::memcpy(&part[r][s], w[r][s] + k, sizeof factor);
                    part[r][s] *= factor;
                }
            transform_weights<F>(part, u + k, g.channels * kTileCols);
        }
    }
}

}  // namespace
}  // namespace resfuse
