// F(4x4, 3x3) of bytes, exact. The interpolation points are whole: 0, 1, -1, 2, -2, infinity. Transformed inputs and
// weights are words: rows of B^T turn bytes into at most 17340 in both dimensions together, coprime rows of G weights
// into at most 49 * 128 = 6272. What these rows lack to be the inverse of the points' matrix, the factors 24 / product
// of (x - others), are in A^T, so that results are 24 * 24 y = 64 * 9 y. Sums wrap: everything is exact modulo 2^32,
// and 9 has an inverse there. Times that, results are 64 y modulo 2^32: y itself, where it is known to within 2^26
// (weights/int8_weights.h sees to that).
//
// Kinds of tiles at the edges leave points out, as in points.h; their own factors are in their A^T.
#pragma once

#include "kernels/int8/gemm.h"
#include "kernels/winograd/winograd.h"

namespace resfuse {
namespace {

using Shorts = VectorOf<std::int16_t>::type;
constexpr index_t kShorts = kVectorBytes / 2;

// The products at +-1 and +-2 of even and odd parts.
template <class V>
inline void integer_pairs(V even_1, V odd_1, V even_2, V odd_2, V* v) {
    v[0] = even_1 + odd_1;
    v[1] = even_1 - odd_1;
    v[2] = even_2 + 2 * odd_2;
    v[3] = even_2 - 2 * odd_2;
}

struct I4Edge2 {
    static constexpr int out = 2, in = 4;
    static constexpr int points[in] = {1, 2, 3, 4};

    template <class V>
    static inline void input(const V* d, int stride, V* v) {
        const V d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride];
        integer_pairs(V(d3 - 4 * d1), V(d2 - 4 * d0), V(d3 - d1), V(d2 - d0), v);
    }
    template <class V>
    static inline void output(const V* m, int stride, V* y) {
        const V sum_1 = m[0] + m[stride], difference_1 = m[0] - m[stride];
        const V sum_2 = m[2 * stride] + m[3 * stride], difference_2 = m[2 * stride] - m[3 * stride];
        y[0] = 2 * difference_2 - 4 * difference_1;
        y[1] = 4 * (sum_2 - sum_1);
    }
};

struct I4Edge3 {
    static constexpr int out = 3, in = 5;
    static constexpr int points[in] = {1, 2, 3, 4, 5};

    template <class V>
    static inline void input(const V* d, int stride, V* v) {
        I4Edge2::input(d, stride, v);
        v[4] = 4 * d[0] - 5 * d[2 * stride] + d[4 * stride];
    }
    template <class V>
    static inline void output(const V* m, int stride, V* y) {
        const V sum_1 = m[0] + m[stride], difference_1 = m[0] - m[stride];
        const V sum_2 = m[2 * stride] + m[3 * stride], difference_2 = m[2 * stride] - m[3 * stride];
        y[0] = 2 * difference_2 - 4 * difference_1;
        y[1] = 4 * (sum_2 - sum_1);
        y[2] = 8 * difference_2 - 4 * difference_1 + 24 * m[4 * stride];
    }
};

struct I4 {
    static constexpr int out = 4, in = 6;
    static constexpr int points[in] = {0, 1, 2, 3, 4, 5};

    template <class V>
    static inline void input(const V* d, int stride, V* v) {
        const V d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride];
        v[0] = 4 * d[0] - 5 * d2 + d4;
        integer_pairs(V(d4 - 4 * d2), V(d3 - 4 * d1), V(d4 - d2), V(d3 - d1), v + 1);
        v[5] = 4 * d1 - 5 * d3 + d[5 * stride];
    }
    template <class V>
    static inline void output(const V* m, int stride, V* y) {
        const V sum_1 = m[stride] + m[2 * stride], difference_1 = m[stride] - m[2 * stride];
        const V sum_2 = m[3 * stride] + m[4 * stride], difference_2 = m[3 * stride] - m[4 * stride];
        y[0] = 6 * m[0] - 4 * sum_1 + sum_2;
        y[1] = 2 * difference_2 - 4 * difference_1;
        y[2] = 4 * (sum_2 - sum_1);
        y[3] = 8 * difference_2 - 4 * difference_1 + 24 * m[5 * stride];
    }
};

struct I4x4 {
    using Full = I4;
    using Edge3 = I4Edge3;
    using Edge2 = I4Edge2;
    static constexpr int stride = 1;
    static constexpr int weight[6][3] = {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {0, 0, 1}};
};

constexpr std::uint32_t kInverseOf9 = 954437177u;  // modulo 2^32
static_assert(kInverseOf9 * 9u == 1u);
constexpr int kPowerOfTwo = 6;  // 576 = 9 * 2^6

struct ByteElement {
    using Storage = std::uint8_t;
};

inline Shorts load_shorts(const std::uint8_t* p) {
#if defined(__AVX512BW__)
    return (Shorts)_mm512_maskz_cvtepu8_epi16(~__mmask32{0}, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return (Shorts)_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(RESFUSE_NEON)
    return (Shorts)vmovl_u8(vld1_u8(p));
#else
    return __builtin_convertvector(load_raw<VectorOf<std::uint8_t, kShorts>::type>(p), Shorts);
#endif
}

template <class R, class C>
[[gnu::always_inline]] inline void transform_bytes(const TilePixels<ByteElement, R, C>& pixels, index_t channel,
                                                   index_t n, std::int16_t* v, index_t frequency_stride) {
    Shorts t[R::in * C::in];
#pragma GCC unroll 6
    for (int j = 0; j < C::in; ++j) {
        Shorts d[R::in], column[R::in];
#pragma GCC unroll 6
        for (int i = 0; i < R::in; ++i) {
            const std::uint8_t* const pixel = pixels.at[i * C::in + j] + channel;
            if (n >= kShorts) {
                d[i] = load_shorts(pixel);
            } else {
                std::uint8_t some[kShorts] = {};
                std::memcpy(some, pixel, static_cast<std::size_t>(n));
                d[i] = load_shorts(some);
            }
        }
        R::input(d, 1, column);
#pragma GCC unroll 6
        for (int i = 0; i < R::in; ++i) t[i * C::in + j] = column[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < R::in; ++i) {
        Shorts row[C::in];
        C::input(t + i * C::in, 1, row);
#pragma GCC unroll 6
        for (int j = 0; j < C::in; ++j) {
            std::int16_t* const to = v + (R::points[i] * I4::in + C::points[j]) * frequency_stride;
            if (n >= kShorts) {
                store_vector(to, row[j]);
            } else {
                std::memcpy(to, &row[j], static_cast<std::size_t>(n) * sizeof(std::int16_t));
            }
        }
    }
}

// g.channels are those of V; the last of an odd number comes from a byte that does not exist, times weights of zero.
template <class R, class C>
void int8_winograd_input(const WinogradInputArgs& g) {
    auto* const v = static_cast<std::int16_t*>(g.v);
    for_each_input_tile<ByteElement, R, C>(g, 1, 0, 0, [&](const TilePixels<ByteElement, R, C>& pixels, index_t t) {
        std::int16_t* const to = v + t * g.channels;
        index_t c = 0;
        for (; c + kShorts <= g.channels; c += kShorts) transform_bytes(pixels, c, kShorts, to + c, g.frequency_stride);
        if (const index_t n = g.channels - c; n > 0) transform_bytes(pixels, c, n, to + c, g.frequency_stride);
    });
}

template <class R, class C>
void int8_winograd_output(const Int8WinogradOutputArgs& args) {
    const WinogradOutputArgs& g = args.tiles;
    with_writer(args.epilogue.output, [&](const auto& write) {
        with_reader(g.residual != nullptr, args.epilogue.residual_type, [&](auto reader) {
            using Reads = decltype(reader);
            transform_output_tiles<VecBits, I4x4, R, C>(g, [&](index_t k, index_t n) {
                const VecBits centre = load_raw<VecBits>(args.centre + k);
                const VecBits shift = centre << kPowerOfTwo, offset = centre + load_raw<VecBits>(args.offset + k);
                const Vec scale = load(args.scale + k), bias = load(g.bias + k),
                          factor = broadcast(args.epilogue.residual_factor);
                return [=, &g, &write](VecBits y, index_t pixel, index_t) {
                    const VecInt sum = ((VecInt)(y * kInverseOf9 - shift) >> kPowerOfTwo) + (VecInt)offset;
                    Vec v = multiply_add(to_floats(sum), scale, bias);
                    if constexpr (!std::is_same_v<Reads, NoReader>)
                        v = multiply_add(Reads::at(g.residual, pixel * g.residual_pixel + k, n), factor, v);
                    write(g.y, pixel * g.pixel + k, v, n);
                };
            });
        });
    });
}

// [36][units of channels][kTileCols][unit], of an even number of channels
void pack_int8_winograd(const PackInt8Args& g) {
    auto* const packed = static_cast<std::int16_t*>(g.packed);
    constexpr int points = I4::in;
    constexpr index_t unit = Words::kUnit;
    const index_t channels = g.depth / 9, padded = (channels + 1) / 2 * 2;
    for (index_t c = 0; c < padded; ++c)
        for (index_t k = 0; k < kTileCols; ++k) {
            int t[points][3] = {};
            if (c < channels && k < g.cols)
                for (int i = 0; i < points; ++i)
                    for (int r = 0; r < 3; ++r)
                        for (int s = 0; s < 3; ++s)
                            t[i][s] += I4x4::weight[i][r] * g.weights[k * g.depth + (r * 3 + s) * channels + c];
            for (int i = 0; i < points; ++i)
                for (int j = 0; j < points; ++j) {
                    int u = 0;
                    for (int s = 0; s < 3; ++s) u += I4x4::weight[j][s] * t[i][s];
                    packed[((i * points + j) * padded + c / unit * unit) * kTileCols + k * unit + c % unit] =
                        static_cast<std::int16_t>(u);
                }
        }
}

template <class F>
constexpr Int8WinogradTransforms int8_winograd_transforms() {
    using A = typename F::Full;
    using B = typename F::Edge3;
    using C = typename F::Edge2;
    return {{{int8_winograd_input<A, A>, int8_winograd_input<A, B>, int8_winograd_input<A, C>},
             {int8_winograd_input<B, A>, int8_winograd_input<B, B>, int8_winograd_input<B, C>},
             {int8_winograd_input<C, A>, int8_winograd_input<C, B>, int8_winograd_input<C, C>}},
            {{int8_winograd_output<A, A>, int8_winograd_output<A, B>, int8_winograd_output<A, C>},
             {int8_winograd_output<B, A>, int8_winograd_output<B, B>, int8_winograd_output<B, C>},
             {int8_winograd_output<C, A>, int8_winograd_output<C, B>, int8_winograd_output<C, C>}}};
}

constexpr WinogradKernels int8_winograd_kernels() {
    return {.number = 0,
            .has_edges = true,
            .tile = I4::out,
            .points = I4::in,
            .operand_bytes = sizeof(std::int16_t),
            .stride = 1,
            .weight_points = I4::in,
            .chunk = 0,
            .kind_points = {points_of_kinds<I4, I4Edge3, I4Edge2>()}};
}

}  // namespace
}  // namespace resfuse
