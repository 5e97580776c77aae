// The transforms of whole tiles (points.h) of images, and of weights.
#pragma once

#include "kernels/gemm/gemm.h"
#include "kernels/winograd/args.h"
#include "kernels/winograd/points.h"

namespace resfuse {
namespace {

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

// Calls f(pixels, t) for tiles of R rows and C columns of every `stride`-th pixel, from (phase_y, phase_x) on.
template <class E, class R, class C, class F>
inline void for_each_input_tile(const WinogradInputArgs& g, int stride, index_t phase_y, index_t phase_x, F f) {
    using Storage = typename E::Storage;
    const Storage* const image = static_cast<const Storage*>(g.image.data);
    const Storage* const zeros = static_cast<const Storage*>(g.zeros);
    for (index_t t = 0; t < g.tiles; ++t) {
        const index_t tile = g.first_tile + t;
        const index_t y0 = tile / g.tiles_per_row * R::out * stride - g.pad_top + phase_y;
        const index_t x0 = tile % g.tiles_per_row * C::out * stride - g.pad_left + phase_x;
        TilePixels<E, R, C> pixels;
        pixels.next =
            next_tile<R, C>(tile, t + 1 < g.tiles, g.tiles_per_row, stride * g.image.row, stride * g.image.pixel);
        for (int i = 0; i < R::in; ++i) {
            const index_t y = y0 + i * stride;
            const bool row_inside = y >= 0 && y < g.image.height;
            for (int j = 0; j < C::in; ++j) {
                const index_t x = x0 + j * stride;
                const bool inside = row_inside && x >= 0 && x < g.image.width;
                pixels.at[i * C::in + j] = inside ? image + y * g.image.row + x * g.image.pixel : zeros;
            }
        }
        f(pixels, t);
    }
}

template <class E, class F, class R, class C>
void transform_input_tiles(const WinogradInputArgs& g, index_t phase_y, index_t phase_x) {
    float* const v = static_cast<float*>(g.v);
    for_each_input_tile<E, R, C>(g, F::stride, phase_y, phase_x, [&](const TilePixels<E, R, C>& pixels, index_t t) {
        transform_input_tile(g, pixels, F::Full::in, v + t * g.channels);
    });
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

// Transforms sums of type V back: begin(k, n) gives, for n channels from k on, what takes each output and its pixel's
// number, and how far from that the next tile's is.
template <class V, class F, class R, class C, class Begin>
[[gnu::always_inline]] inline void transform_output_tiles(const WinogradOutputArgs& g, const Begin& begin) {
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
            V half[R::out * C::in];
#pragma GCC unroll 6
            for (int j = 0; j < C::in; ++j) {
                V column[R::in], transformed[R::out];
#pragma GCC unroll 6
                for (int i = 0; i < R::in; ++i)
                    column[i] = load_raw<V>(m + (R::points[i] * F::Full::in + C::points[j]) * g.frequency_stride);
                R::output(column, 1, transformed);
                for (int i = 0; i < R::out; ++i) half[i * C::in + j] = transformed[i];
            }
            const auto finish = begin(k, n);
#pragma GCC unroll 4
            for (int i = 0; i < R::out; ++i) {
                if (i >= rows) break;
                V y[C::out];
                C::output(half + i * C::in, 1, y);
                const index_t first = (y0 + i) * g.width + x0;
#pragma GCC unroll 4
                for (int j = 0; j < C::out; ++j) {
                    if (j >= cols) break;
                    finish(y[j], first + j, next);
                }
            }
        }
    }
}

template <class E, class F, class R, class C>
void winograd_output(const WinogradOutputArgs& g) {
    using Storage = typename E::Storage;
    const Vec floor = broadcast(g.floor);
    transform_output_tiles<Vec, F, R, C>(g, [&](index_t k, index_t n) {
        const Vec bias = g.bias ? load(g.bias + k) : zero();
        return [&g, k, n, bias, floor](Vec y, index_t pixel, index_t next) {
            Vec v = y + bias;
            if (g.residual) {
                const Storage* const residual = static_cast<const Storage*>(g.residual) + pixel * g.residual_pixel + k;
                __builtin_prefetch(residual + next * g.residual_pixel);
                v += E::load_first(residual, n);
            }
            Storage* const to = static_cast<Storage*>(g.y) + pixel * g.pixel + k;
            __builtin_prefetch(to + next * g.pixel, 1);
            E::store_first(to, clamp_below(v, floor), n);
        };
    });
}

// The products that a dimension of a tile needs, and of its kinds.
template <class Dimension>
constexpr std::uint32_t points_of() {
    std::uint32_t mask = 0;
    for (const int point : Dimension::points) mask |= 1u << point;
    return mask;
}

template <class A, class B, class C>
constexpr WinogradPoints points_of_kinds() {
    return {points_of<A>(), points_of<B>(), points_of<C>()};
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
