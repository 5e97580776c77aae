// The gradient of a convolution's weights: sums of outer products of what its inputs and its outputs' gradients are in
// the domain where it multiplies, pixels for direct convolution, tiles for Winograd's.
#pragma once

#include "kernels/gradients/args.h"
#include "kernels/layout/layout.h"
#include "kernels/simd/element.h"
#include "kernels/winograd/winograd.h"

namespace resfuse {
namespace {

// Steps of one accumulator before it is added to the result.
constexpr index_t kOuterSteps = 256;

#if defined(RESFUSE_NEON)
// Four rows from `First` on: their factors are the lanes of one vector.
template <int First, int Rows, int... Lane>
[[gnu::always_inline]] inline void outer_lanes(const float* a, const Vec (&row)[kTileVectors],
                                               Vec (&acc)[Rows][kTileVectors], std::integer_sequence<int, Lane...>) {
    const auto x = (float32x4_t)load(a + First);
    ((acc[First + Lane][0] = (Vec)vfmaq_laneq_f32((float32x4_t)acc[First + Lane][0], (float32x4_t)row[0], x, Lane),
      acc[First + Lane][1] = (Vec)vfmaq_laneq_f32((float32x4_t)acc[First + Lane][1], (float32x4_t)row[1], x, Lane)),
     ...);
}
#endif

template <int Rows>
[[gnu::always_inline]] inline void outer_step(const float* a, const float* b, Vec (&acc)[Rows][kTileVectors]) {
    Vec row[kTileVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kTileVectors; ++j) row[j] = load(b + j * kVectorFloats);
#if defined(RESFUSE_NEON)
    if constexpr (Rows == 8) {
        constexpr auto lanes = std::make_integer_sequence<int, 4>{};
        outer_lanes<0>(a, row, acc, lanes);
        return outer_lanes<4>(a, row, acc, lanes);
    }
#endif
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
        const Vec x = broadcast(a[i]);
#pragma GCC unroll 2
        for (int j = 0; j < kTileVectors; ++j) acc[i][j] += x * row[j];
    }
}

// Memory to be fetched a few floats a step.
struct Ahead {
    const float *a, *b;
    index_t a_step, b_step;
    void advance(index_t steps) {
        a += steps * a_step;
        b += steps * b_step;
    }
};

template <int Rows>
[[gnu::noinline]] void outer_tile(const OuterProductArgs& g, const float* a, const float* b, index_t steps, float* c,
                                  bool accumulate, Ahead ahead) {
    const index_t lda = g.lda, ldb = g.ldb, ldc = g.ldc;
    Vec acc[Rows][kTileVectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < kTileVectors; ++j) acc[i][j] = zero();
    // The result's lines are fetched one a step meanwhile.
    const index_t fetches = at_most(steps, Rows);
    const float* to = c;
#pragma GCC unroll 1
    for (index_t t = 0; t < fetches; ++t) {
        __builtin_prefetch(to, 1);
        __builtin_prefetch(to + kVectorFloats, 1);
        to += ldc;
        outer_step<Rows>(a, b, acc);
        a += lda;
        b += ldb;
    }
#pragma GCC unroll 2
    for (index_t t = fetches; t < steps; ++t) {
        __builtin_prefetch(ahead.a, 0, 2);
        __builtin_prefetch(ahead.b, 0, 2);
        ahead.advance(1);
        outer_step<Rows>(a, b, acc);
        a += lda;
        b += ldb;
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < kTileVectors; ++j) {
            float* const at = c + i * ldc + j * kVectorFloats;
            store(at, accumulate ? load(at) + acc[i][j] : acc[i][j]);
        }
}

template <int Rows>
inline void outer_tile_of(index_t rows, const OuterProductArgs& g, const float* a, const float* b, index_t steps,
                          float* c, bool accumulate, const Ahead& ahead) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return outer_tile_of<Rows - 1>(rows, g, a, b, steps, c, accumulate, ahead);
    }
    outer_tile<Rows>(g, a, b, steps, c, accumulate, ahead);
}

// A piece of one panel stays in L1 for all tiles, which share the fetching.
inline void outer_product(const OuterProductArgs& g) {
    const index_t tiles = even_tiles<Form::plain>(g.rows);
    const index_t all_steps = g.panels * tiles * (g.steps > kTileRows ? g.steps - kTileRows : 1);
    Ahead ahead{g.next_a ? g.next_a : g.a, g.next_b ? g.next_b : g.b, (g.next_a_floats + all_steps - 1) / all_steps,
                (g.next_b_floats + all_steps - 1) / all_steps};
    for (index_t t = 0; t < g.steps; t += kOuterSteps) {
        const index_t steps = at_most(kOuterSteps, g.steps - t);
        for (index_t p = 0; p < g.panels; ++p)
            for (index_t i = 0; i < tiles; ++i) {
                const index_t begin = g.rows * i / tiles, end = g.rows * (i + 1) / tiles;
                outer_tile_of<kTileRows>(end - begin, g, g.a + t * g.lda + begin, g.b + p * g.b_panel + t * g.ldb,
                                         steps, g.c + p * g.c_panel + begin * g.ldc, g.accumulate || t > 0, ahead);
                ahead.advance(steps > kTileRows ? steps - kTileRows : 0);
            }
    }
}

// Rows of channels, as fp32, into panels of tile_cols columns, zeros past the last channel.
template <class E>
void pack_rows(const PackRowsArgs& g) {
    const auto* const x = static_cast<const typename E::Storage*>(g.x);
    for (index_t row = 0; row < g.rows; ++row)
        for (index_t k = 0; k < g.channels; k += kTileCols) {
            float* to = g.panels + k / kTileCols * g.panel_stride + row * kTileCols;
            for (index_t j = 0; j < kTileCols; j += kVectorFloats) {
                const index_t left = g.channels - k - j, n = left < 0 ? 0 : at_most(left, kVectorFloats);
                store(to + j, n > 0 ? E::load_first(x + row * g.pixel + k + j, n) : zero());
            }
        }
}

// A move to fp32 and back changes no element.
template <class E>
void copy_windows(const CopyWindowsArgs& g) {
    const auto* const x = static_cast<const typename E::Storage*>(g.x);
    auto* const to = static_cast<typename E::Storage*>(g.to);
    for (index_t i = 0; i < g.pixels; ++i)
        for (index_t r = 0; r < g.rows; ++r)
            move_elements<E, E>(to + i * g.pitch + r * g.run, x + i * g.pixel + r * g.row, g.run);
}

// The adjoint of the output transform: A dy A^T, tile by tile, into panels.
template <class E, class F>
void winograd_gradient(const WinogradGradientArgs& g) {
    using D = typename F::Full;
    const auto* const image = static_cast<const typename E::Storage*>(g.image.data);
    for (index_t t = 0; t < g.tiles; ++t) {
        const index_t tile = g.first_tile + t;
        const index_t y0 = tile / g.tiles_per_row * D::out, x0 = tile % g.tiles_per_row * D::out;
        for (index_t k = 0; k < g.channels; k += kVectorFloats) {
            const index_t n = at_most(kVectorFloats, g.channels - k);
            Vec half[D::in * D::out];
#pragma GCC unroll 4
            for (int j = 0; j < D::out; ++j) {
                Vec dy[D::out], column[D::in];
#pragma GCC unroll 4
                for (int i = 0; i < D::out; ++i) {
                    const bool inside = y0 + i < g.image.height && x0 + j < g.image.width;
                    dy[i] = inside ? E::load_first(image + (y0 + i) * g.image.row + (x0 + j) * g.image.pixel + k, n)
                                   : zero();
                }
                D::gradient(dy, 1, column);
                for (int i = 0; i < D::in; ++i) half[i * D::out + j] = column[i];
            }
            float* to = g.panels + k / kTileCols * g.panel_stride + t * kTileCols + k % kTileCols;
#pragma GCC unroll 6
            for (int i = 0; i < D::in; ++i) {
                Vec row[D::in];
                D::gradient(half + i * D::out, 1, row);
#pragma GCC unroll 6
                for (int j = 0; j < D::in; ++j) store(to + (i * D::in + j) * g.frequency_stride, row[j]);
            }
        }
        // The last panel's columns past the channels.
        for (index_t k = (g.channels + kVectorFloats - 1) / kVectorFloats * kVectorFloats; k % kTileCols != 0;
             k += kVectorFloats)
            for (int f = 0; f < D::in * D::in; ++f)
                store(
                    g.panels + k / kTileCols * g.panel_stride + t * kTileCols + k % kTileCols + f * g.frequency_stride,
                    zero());
    }
}

// G^T dU G of kVectorDoubles channels.
template <class F>
inline void untransform_weights(const float* u, index_t frequency_stride, VecDouble (&w)[3][3]) {
    constexpr int in = F::Full::in;
    VecDouble t[in][3];
#pragma GCC unroll 6
    for (int i = 0; i < in; ++i) {
        VecDouble row[in];
#pragma GCC unroll 6
        for (int j = 0; j < in; ++j) row[j] = load_doubles(u + (i * in + j) * frequency_stride);
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s) {
            t[i][s] = VecDouble{};
#pragma GCC unroll 6
            for (int j = 0; j < in; ++j)
                if (F::weight[j][s] != 0.0) t[i][s] += F::weight[j][s] * row[j];
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s) {
            w[r][s] = VecDouble{};
#pragma GCC unroll 6
            for (int i = 0; i < in; ++i)
                if (F::weight[i][r] != 0.0) w[r][s] += F::weight[i][r] * t[i][s];
        }
}

// dw for some input channels and one panel of output channels, in double precision like the weights' own transform.
template <class F>
void winograd_weight_gradient(const WinogradWeightGradientArgs& g) {
    for (index_t c = 0; c < g.channels; ++c)
        for (index_t k = 0; k < g.cols; k += kVectorDoubles) {
            VecDouble w[3][3];
            untransform_weights<F>(g.products + c * g.product_row + k, g.frequency_stride, w);
            const index_t lanes = at_most(kVectorDoubles, g.cols - k);
#pragma GCC unroll 3
            for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
                for (int s = 0; s < 3; ++s) {
                    float* const to = g.dw + k * g.stride_k + c * g.stride_c + r * g.stride_h + s * g.stride_w;
                    for (index_t lane = 0; lane < lanes; ++lane)
                        to[lane * g.stride_k] = static_cast<float>(w[r][s][lane]);
                }
        }
}

}  // namespace
}  // namespace resfuse
