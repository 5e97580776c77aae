// Winograd convolution transforms F(2x2, 3x3), F(4x4, 3x3) and, for stride 2, F(4x4, 2x2) of the four phases (Lavin &
// Gray, "Fast Algorithms for Convolutional Neural Networks", 2015). F(4,3) uses the interpolation points 0, +-5/8,
// +-3/2, infinity, F(4,2) +-3/8, +-5/4, infinity. Pairs +-p keep the even/odd symmetry that makes the transforms cheap;
// points with products near 1 halve the rounding error of the usual +-1, +-2 (of all small multiples of 1/8 these gave
// the least); and they must be exact in fp32: with rounded square roots the three matrices no longer fit each other,
// which costs three times the error (measured, see docs/accuracy.md).
#pragma once

#include "kernels/simd/simd.h"

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

}  // namespace
}  // namespace resfuse
