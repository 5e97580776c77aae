// Pools and elementwise layers of bytes.
#pragma once

#include "kernels/int8/bytes.h"
#include "kernels/pool/avg_pool.h"

namespace resfuse {
namespace {

using VecBytes = VectorOf<std::uint8_t>::type;

template <class V>
inline V largest_of_taps(const MaxPoolArgs& g, const std::uint8_t* window, index_t rows, index_t cols, index_t n) {
    V best{};
    for (index_t r = 0; r < rows; ++r) {
        const std::uint8_t* p = window + r * g.window.dilation_h * g.image.row;
        for (index_t s = 0; s < cols; ++s, p += g.window.dilation_w * g.image.pixel) {
            V v{};
            if (n >= static_cast<index_t>(sizeof(V))) {
                v = load_raw<V>(p);
            } else {
                std::memcpy(&v, p, static_cast<std::size_t>(n));
            }
            best = v > best ? v : best;
        }
    }
    return best;
}

// Bytes of one range have the order of the numbers that they stand for.
void max_pool_bytes(const MaxPoolArgs& g) {
    constexpr index_t kLanes = sizeof(VecBytes);
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy) {
        const Taps rows = taps_inside(oy * g.window.stride_h - g.window.pad_top, g.window.kernel_h, g.window.dilation_h,
                                      g.image.height);
        for (index_t ox = 0; ox < g.out_width; ++ox) {
            const Taps cols = taps_inside(ox * g.window.stride_w - g.window.pad_left, g.window.kernel_w,
                                          g.window.dilation_w, g.image.width);
            const std::uint8_t* const window =
                static_cast<const std::uint8_t*>(g.image.data) + rows.first * g.image.row + cols.first * g.image.pixel;
            std::uint8_t* const y = static_cast<std::uint8_t*>(g.y) + (oy - g.out_row_begin) * g.y_row + ox * g.y_pixel;
            for (index_t c = 0; c < g.channels; c += kLanes) {
                const index_t n = at_most(g.channels - c, kLanes);
                const VecBytes best =
                    largest_of_taps<VecBytes>(g, window + c, rows.end - rows.begin, cols.end - cols.begin, n);
                std::memcpy(y + c, &best, static_cast<std::size_t>(n));
            }
        }
    }
}

void int8_avg_pool(const Int8AvgPoolArgs& args) {
    const AvgPoolArgs& pool = args.pool;
    const MaxPoolArgs& g = pool.pool;
    OutputArgs output = args.output;
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy) {
        const index_t y0 = oy * g.window.stride_h - g.window.pad_top;
        const Taps rows = taps_inside(y0, g.window.kernel_h, 1, g.image.height);
        const index_t divisor_h =
            divisor_of(pool.counts_padding, rows, y0, g.window.kernel_h, g.image.height, pool.pad_bottom);
        for (index_t ox = 0; ox < g.out_width; ++ox) {
            const index_t x0 = ox * g.window.stride_w - g.window.pad_left;
            const Taps cols = taps_inside(x0, g.window.kernel_w, 1, g.image.width);
            const index_t taps_h = rows.end - rows.begin, taps_w = cols.end - cols.begin;
            const index_t divisor =
                divisor_h * divisor_of(pool.counts_padding, cols, x0, g.window.kernel_w, g.image.width, pool.pad_right);
            const int zero = args.zero_point * static_cast<int>(taps_h * taps_w);
            const Vec factor = broadcast(args.output.steps / static_cast<float>(divisor));
            output.steps = 1.0f;
            const std::uint8_t* const window =
                static_cast<const std::uint8_t*>(g.image.data) + rows.first * g.image.row + cols.first * g.image.pixel;
            const index_t to = (oy - g.out_row_begin) * g.y_row + ox * g.y_pixel;
            with_writer(output, [&](const auto& write) {
                for (index_t c = 0; c < g.channels; c += kVectorFloats) {
                    const index_t n = at_most(g.channels - c, kVectorFloats);
                    VecInt sum = VecInt{} - zero;
                    for (index_t r = 0; r < taps_h; ++r)
                        for (index_t s = 0; s < taps_w; ++s)
                            sum += load_bytes_first(window + r * g.image.row + s * g.image.pixel + c, n);
                    write(g.y, to + c, to_floats(sum) * factor, n);
                }
            });
        }
    }
}

// Sums of 32 bits hold 8 million pixels; of more, those of each such part are added as floats.
void int8_mean(const Int8MeanArgs& g) {
    OutputArgs output = g.output;
    output.steps = 1.0f;
    const double pixels = static_cast<double>(g.image.height * g.image.width);
    const Vec factor = broadcast(static_cast<float>(g.output.steps * (g.range.scale / pixels)));
    const Vec shift = broadcast(-g.output.steps * static_cast<float>(g.range.zero_point) * g.range.scale);
    constexpr index_t kMostPixels = index_t{1} << 23;
    const index_t rows_each = g.image.width < kMostPixels ? kMostPixels / g.image.width : 1;
    const auto* const image = static_cast<const std::uint8_t*>(g.image.data);
    with_writer(output, [&](const auto& write) {
        for (index_t c = 0; c < g.channels; c += kVectorFloats) {
            const index_t n = at_most(g.channels - c, kVectorFloats);
            Vec total = zero();
            for (index_t y = 0; y < g.image.height; y += rows_each)
                for (index_t x = 0; x < g.image.width; x += kMostPixels) {
                    VecInt sum{};
                    const index_t end_y = at_most(y + rows_each, g.image.height);
                    const index_t end_x = at_most(x + kMostPixels, g.image.width);
                    for (index_t row = y; row < end_y; ++row)
                        for (index_t col = x; col < end_x; ++col)
                            sum += load_bytes_first(image + row * g.image.row + col * g.image.pixel + c, n);
                    total += to_floats(sum);
                }
            write(g.y, c, multiply_add(total, factor, shift), n);
        }
    });
}

void int8_affine(const Int8AffineArgs& g) {
    with_writer(g.output, [&](const auto& write) {
        with_reader(true, g.type, [&](auto reader) {
            with_reader(g.residual.data != nullptr, g.residual.type, [&](auto addend) {
                using X = decltype(reader);
                using R = decltype(addend);
                if constexpr (!std::is_same_v<X, NoReader>) {
                    const Vec factor = broadcast(g.residual.factor);
                    for (index_t row = 0; row < g.rows; ++row)
                        for (index_t c = 0; c < g.channels; c += kVectorFloats) {
                            const index_t n = at_most(g.channels - c, kVectorFloats);
                            Vec v = multiply_add(X::at(g.x, row * g.x_pixel + c, n), load_first(g.scale + c, n),
                                                 load_first(g.bias + c, n));
                            if constexpr (!std::is_same_v<R, NoReader>)
                                v = multiply_add(R::at(g.residual.data, row * g.residual_pixel + c, n), factor, v);
                            write(g.y, row * g.y_pixel + c, v, n);
                        }
                }
            });
        });
    });
}

}  // namespace
}  // namespace resfuse
