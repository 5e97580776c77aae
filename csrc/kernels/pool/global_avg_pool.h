// Sums over the pixels of one image, in any element type and memory layout, and means made of them.
//
// Every element is read once, in the order of memory where that is possible:
// runs:  pixels lie next to each other (NCHW). Each channel is a sum over contiguous runs; the vectors of partial sums
// of
//        a group of channels are reduced together.
// lanes: channels lie next to each other (channels_last). Vectors of channels are added up over the pixels. Where
// pixels
//        are short and dense, many are taken as one wide one, and its repeats are folded at the end.
// Other layouts take the walk that follows their smaller stride, one number at a time.
// All sums are trees (blocks of kBlock terms, pairs of blocks above them): rounding errors grow with the logarithm of
// the number of pixels (Higham, "The accuracy of floating point summation", 1993).
#pragma once

#include "kernels/pool/args.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

// ---- reducing vectors ----

// Each vector holds blocks of `Width` lanes; takes the lower or the upper half of every block, a's and b's in turns.
template <std::size_t Width, bool Upper, std::size_t... I>
constexpr auto half_blocks(std::index_sequence<I...>) {
    constexpr std::size_t half = Width / 2;
    return std::index_sequence<(I / Width * Width + I % half + (Upper ? half : 0) +
                                (I % Width / half) * sizeof...(I))...>{};
}

template <class V, std::size_t... I, std::size_t... J>
inline V fold_blocks(V a, V b, std::index_sequence<I...>, std::index_sequence<J...>) {
    return __builtin_shufflevector(a, b, I...) + __builtin_shufflevector(a, b, J...);
}

// The sums of Count vectors v[0], v[stride], ..., in order, each in a block of lanes / Count lanes.
template <std::size_t Lanes, std::size_t Count = Lanes, std::size_t Stride = 1, class V>
inline V reduce_each(const V* v) {
    if constexpr (Count == 1) {
        return v[0];
    } else {
        constexpr std::size_t width = 2 * Lanes / Count;
        constexpr auto all = std::make_index_sequence<Lanes>{};
        return fold_blocks(reduce_each<Lanes, Count / 2, 2 * Stride>(v),
                           reduce_each<Lanes, Count / 2, 2 * Stride>(v + Stride), half_blocks<width, false>(all),
                           half_blocks<width, true>(all));
    }
}

// ---- runs ----

// The hardware's prefetchers stop at pages, and sums of short types keep too few loads in flight by themselves: fetches
// what lies kAhead bytes behind `Elements` elements at p.
constexpr index_t kAhead = 3072;
template <index_t Elements, class T>
inline void fetch_ahead(const T* p) {
    constexpr index_t line = 64;
    for (index_t byte = 0; byte < Elements * static_cast<index_t>(sizeof(T)); byte += line)
        __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead + byte);
}

// n elements, of which the last n % kStep are the tail of their run.
template <class E>
inline typename E::Vector sum_block(const typename E::Storage* p, index_t n, const typename E::Tail& tail) {
    constexpr index_t step = E::kStep;
    const index_t steps = n / step, rest = n % step;
    typename E::Vector a{}, b{}, c{}, d{};
    index_t i = 0;
    for (; i + 4 <= steps; i += 4) {
        fetch_ahead<4 * step>(p + i * step);
        a += E::step(p + i * step);
        b += E::step(p + (i + 1) * step);
        c += E::step(p + (i + 2) * step);
        d += E::step(p + (i + 3) * step);
    }
    for (; i < steps; ++i) a += E::step(p + i * step);
    if (rest > 0) b += E::Tail::kReadsBefore && steps == 0 ? E::step_first(p, rest) : E::step_tail(p + n, tail);
    return (a + b) + (c + d);
}

// Partial sums of rows of contiguous pixels.
template <class E>
typename E::Vector sum_runs(const typename E::Storage* p, index_t rows, index_t row, index_t cols,
                            const typename E::Tail& tail) {
    constexpr index_t block = 64 * E::kStep;
    if (rows > 1) {
        const index_t half = rows / 2;
        return sum_runs<E>(p, half, row, cols, tail) + sum_runs<E>(p + half * row, rows - half, row, cols, tail);
    }
    if (cols > block) {
        const index_t half = (cols / 2 + block - 1) / block * block;
        return sum_runs<E>(p, 1, row, half, tail) + sum_runs<E>(p + half, 1, row, cols - half, tail);
    }
    return sum_block<E>(p, cols, tail);
}

// Calls partial_sums(c), a vector, for each channel and reduces as many at a time as a vector has lanes.
template <class E, class F>
inline void reduce_channels(const PoolSumArgs& g, F partial_sums) {
    constexpr index_t lanes = E::kLanes;
    auto* sums = static_cast<typename E::Accumulator*>(g.sums);
    index_t c = 0;
    for (; c + lanes <= g.channels; c += lanes) {
        typename E::Vector partial[lanes];
        for (index_t k = 0; k < lanes; ++k) partial[k] = partial_sums(c + k);
        store_vector(sums + c, reduce_each<static_cast<std::size_t>(lanes)>(partial));
    }
    if (c == g.channels) return;
    typename E::Vector partial[lanes] = {};
    for (index_t k = 0; c + k < g.channels; ++k) partial[k] = partial_sums(c + k);
    const auto total = reduce_each<static_cast<std::size_t>(lanes)>(partial);
    std::memcpy(sums + c, &total, static_cast<std::size_t>(g.channels - c) * sizeof(*sums));
}

// Runs of Steps steps and a tail: the late feature maps (7 x 7, 8 x 8), where a general loop would cost more than the
// sum.
template <class E, int Steps>
void pool_short_runs(const PoolSumArgs& g) {
    const auto* x = static_cast<const typename E::Storage*>(g.x);
    const index_t cols = g.cols, stride = g.stride_c;
    const typename E::Tail tail(cols % E::kStep);
    reduce_channels<E>(g, [=](index_t c) {
        const auto* p = x + c * stride;
        fetch_ahead<Steps * E::kStep + E::kStep / 2>(p);
        typename E::Vector even = E::step_tail(p + cols, tail), odd = E::step(p);
        for (int i = 1; i < Steps; ++i) (i % 2 ? even : odd) += E::step(p + i * E::kStep);
        return even + odd;
    });
}

template <class E, int... Steps>
void pool_short_runs(const PoolSumArgs& g, std::integer_sequence<int, Steps...>) {
    using Kernel = void (*)(const PoolSumArgs&);
    static constexpr Kernel kernels[] = {pool_short_runs<E, Steps + 1>...};
    kernels[g.cols / E::kStep - 1](g);
}

template <class E>
void pool_runs(const PoolSumArgs& g) {
    constexpr int short_steps = 8;
    if (g.rows == 1 && g.cols >= E::kStep && g.cols < (short_steps + 1) * E::kStep)
        return pool_short_runs<E>(g, std::make_integer_sequence<int, short_steps>{});
    const auto* x = static_cast<const typename E::Storage*>(g.x);
    const typename E::Tail tail(g.cols % E::kStep);
    reduce_channels<E>(g, [&](index_t c) { return sum_runs<E>(x + c * g.stride_c, g.rows, g.stride_h, g.cols, tail); });
}

// ---- lanes ----

constexpr index_t kLaneBlock = 1024;  // channels whose accumulators stay in L1
constexpr index_t kFoldLanes = 256;
constexpr index_t kBlock = 32;  // pixels added up one after the other

// sums[j] (+)= the sum of P pixels, as pairs. The last pair is padded with zeros: `sums` has room for them.
template <class E, int P, bool First>
inline void add_pixels(const typename E::Storage* p, index_t pixel, index_t lanes, typename E::Accumulator* sums) {
    using V = typename E::Vector;
    constexpr index_t pair = 2 * E::kLanes;
    const auto add = [&](index_t j, auto load) {
        // The next P pixels, every line: into L2, for they are used only after the rest of these.
        constexpr index_t line = 64 / static_cast<index_t>(sizeof(typename E::Storage));
        for (int i = 0; i < P; ++i)
            for (index_t at = 0; at < pair; at += line) __builtin_prefetch(p + j + at + (P + i) * pixel, 0, 2);
        auto total = load(p + j);
        if constexpr (P >= 2) total += load(p + j + pixel);
        if constexpr (P >= 4) total += load(p + j + 2 * pixel) + load(p + j + 3 * pixel);
        if constexpr (P >= 8)
            total += (load(p + j + 4 * pixel) + load(p + j + 5 * pixel)) +
                     (load(p + j + 6 * pixel) + load(p + j + 7 * pixel));
        if constexpr (!First) total += {load_raw<V>(sums + j), load_raw<V>(sums + j + E::kLanes)};
        store_vector(sums + j, total.a);
        store_vector(sums + j + E::kLanes, total.b);
    };
    index_t j = 0;
    for (; j + pair <= lanes; j += pair) add(j, [](const auto* q) { return E::pair(q); });
    if (j < lanes) add(j, [n = lanes - j](const auto* q) { return E::pair_first(q, n); });
}

template <class E, int P>
inline void add_pixels(const typename E::Storage* p, index_t pixel, index_t lanes, typename E::Accumulator* sums,
                       bool first) {
    if (first) {
        add_pixels<E, P, true>(p, pixel, lanes, sums);
    } else {
        add_pixels<E, P, false>(p, pixel, lanes, sums);
    }
}

template <class E>
void sum_lane_block(const typename E::Storage* p, index_t count, index_t pixel, index_t lanes, index_t stride_c,
                    typename E::Accumulator* sums) {
    if (stride_c != 1) {
        for (index_t j = 0; j < lanes; ++j) sums[j] = 0;
        for (index_t i = 0; i < count; ++i)
            for (index_t j = 0; j < lanes; ++j) sums[j] += E::widen(p[i * pixel + j * stride_c]);
        return;
    }
    index_t i = 0;
    for (; i + 8 <= count; i += 8) add_pixels<E, 8>(p + i * pixel, pixel, lanes, sums, i == 0);
    if (count & 4) add_pixels<E, 4>(p + i * pixel, pixel, lanes, sums, i == 0), i += 4;
    if (count & 2) add_pixels<E, 2>(p + i * pixel, pixel, lanes, sums, i == 0), i += 2;
    if (count & 1) add_pixels<E, 1>(p + i * pixel, pixel, lanes, sums, i == 0);
}

template <class V, class A>
inline void add_vector(A* sums, const A* more) {
    store_vector(sums, load_raw<V>(sums) + load_raw<V>(more));
}

// Whole pairs, so that it does not matter in which order they hold their lanes.
template <class E>
inline void add_lanes(typename E::Accumulator* sums, const typename E::Accumulator* more, index_t lanes) {
    for (index_t j = 0; j < lanes; j += 2 * E::kLanes) {
        add_vector<typename E::Vector>(sums + j, more + j);
        add_vector<typename E::Vector>(sums + j + E::kLanes, more + j + E::kLanes);
    }
}

// sums[j] = the sum over `count` pixels.
template <class E>
void sum_lanes(const typename E::Storage* p, index_t count, index_t pixel, index_t lanes, index_t stride_c,
               typename E::Accumulator* sums) {
    if (count <= kBlock) return sum_lane_block<E>(p, count, pixel, lanes, stride_c, sums);
    const index_t half = (count / 2 + 7) / 8 * 8;
    typename E::Accumulator upper[kLaneBlock];
    sum_lanes<E>(p, half, pixel, lanes, stride_c, sums);
    sum_lanes<E>(p + half * pixel, count - half, pixel, lanes, stride_c, upper);
    add_lanes<E>(sums, upper, lanes);
}

// sums[j] = the sum over rows of pixels. A row of `cols` pixels is `count` wide ones of `lanes` lanes and a rest.
template <class E>
void sum_lane_rows(const typename E::Storage* p, index_t rows, const PoolSumArgs& g, index_t lanes, index_t fold,
                   typename E::Accumulator* sums) {
    typename E::Accumulator upper[kLaneBlock];
    if (rows > 1) {
        const index_t half = rows / 2;
        sum_lane_rows<E>(p, half, g, lanes, fold, sums);
        sum_lane_rows<E>(p + half * g.stride_h, rows - half, g, lanes, fold, upper);
        return add_lanes<E>(sums, upper, lanes);
    }
    const index_t wide = g.cols / fold, rest = g.cols % fold;
    sum_lanes<E>(p, wide, fold * g.stride_w, lanes, g.stride_c, sums);
    if (rest > 0) {
        const index_t rest_lanes = rest * (lanes / fold);
        sum_lane_block<E>(p + wide * fold * g.stride_w, 1, 0, rest_lanes, g.stride_c, upper);
        add_lanes<E>(sums, upper, rest_lanes);
    }
}

// sums[c] = the sum of its `fold` repeats.
template <class E>
void fold_repeats(typename E::Accumulator* sums, index_t channels, index_t fold) {
    while (fold > 1) {
        const index_t half = fold / 2;
        const auto* upper = sums + (fold - half) * channels;
        index_t j = 0;
        for (; j + E::kLanes <= half * channels; j += E::kLanes) add_vector<typename E::Vector>(sums + j, upper + j);
        for (; j < half * channels; ++j) sums[j] += upper[j];
        fold -= half;
    }
}

template <class E>
void pool_lanes(const PoolSumArgs& g) {
    using A = typename E::Accumulator;
    const auto* x = static_cast<const typename E::Storage*>(g.x);
    for (index_t c = 0; c < g.channels; c += kLaneBlock) {
        const index_t channels = at_most(kLaneBlock, g.channels - c);
        const bool dense = g.stride_c == 1 && g.stride_w == g.channels && !g.by_pixel;
        const index_t fold = dense ? at_most(channels < kFoldLanes ? kFoldLanes / channels : 1, g.cols) : 1;
        A sums[kLaneBlock];
        sum_lane_rows<E>(x + c * g.stride_c, g.rows, g, fold * channels, fold, sums);
        if (g.stride_c == 1)
            for (index_t j = 0; j < fold * channels; j += 2 * E::kLanes) E::order_pair(sums + j);
        fold_repeats<E>(sums, channels, fold);
        std::memcpy(static_cast<A*>(g.sums) + c, sums, static_cast<std::size_t>(channels) * sizeof(A));
    }
}

// ---- strided ----

template <class E>
typename E::Accumulator sum_strided(const typename E::Storage* p, index_t rows, index_t row, index_t cols,
                                    index_t pixel) {
    typename E::Accumulator total = 0;
    if (rows > 1) {
        const index_t half = rows / 2;
        return sum_strided<E>(p, half, row, cols, pixel) +
               sum_strided<E>(p + half * row, rows - half, row, cols, pixel);
    }
    if (cols > kBlock) {
        const index_t half = cols / 2;
        return sum_strided<E>(p, 1, row, half, pixel) + sum_strided<E>(p + half * pixel, 1, row, cols - half, pixel);
    }
    for (index_t i = 0; i < cols; ++i) total += E::widen(p[i * pixel]);
    return total;
}

template <class E>
void pool_strided(const PoolSumArgs& g) {
    for (index_t c = 0; c < g.channels; ++c)
        static_cast<typename E::Accumulator*>(g.sums)[c] = sum_strided<E>(
            static_cast<const typename E::Storage*>(g.x) + c * g.stride_c, g.rows, g.stride_h, g.cols, g.stride_w);
}

template <class E>
void pool_sum(const PoolSumArgs& g) {
    if (g.by_pixel) return pool_lanes<E>(g);
    if (g.stride_w == 1 && g.cols > 1) return pool_runs<E>(g);
    if (g.stride_c == 1 || g.stride_c < g.stride_w) return pool_lanes<E>(g);
    pool_strided<E>(g);
}

// ---- means ----

template <class E>
void pool_mean(const PoolMeanArgs& g) {
    using T = typename E::Storage;
    using V = typename E::Vector;
    constexpr index_t lanes = E::kLanes;
    auto* y = static_cast<T*>(g.y);
    const auto* sums = static_cast<const typename E::Accumulator*>(g.sums);
    const V pixels = static_cast<typename E::Accumulator>(g.pixels) - V{};
    for (index_t c = 0; c < g.channels; c += lanes) {
        const index_t n = at_most(lanes, g.channels - c);
        const auto load = [n](const auto* p) { return n == lanes ? load_raw<V>(p) : load_raw_first<V>(p, n); };
        V total = load(sums + c);
        // The parts are few and large: added up in double, they are rounded once.
        for (index_t k = 0; k < n && g.parts > 1; ++k) {
            double parts = 0;
            for (index_t part = 0; part < g.parts; ++part)
                parts += static_cast<double>(sums[part * g.part_stride + c + k]);
            total[k] = static_cast<typename E::Accumulator>(parts);
        }
        const auto means = E::round(total / pixels);
        if (n == lanes && g.stride_y == 1) {
            store_vector(y + c, means);
        } else {
            for (index_t k = 0; k < n; ++k) y[(c + k) * g.stride_y] = means[k];
        }
    }
}

}  // namespace
}  // namespace resfuse
