// Winograd's F(2x2, 3x3) for groups of few channels: 4 instead of 9 products an output and input channel of its group.
//
// There is no matrix product in between, so that all stays in registers and L1: a block is two tiles side by side,
// which share each weight vector. Columns of the image are transformed once, on their way in; a block needs the four of
// its own and the first two of the next one's. Then rows of products, their output transforms, and the epilogue. The
// error is about that of direct sums (docs/accuracy.md).
#pragma once

#include "kernels/grouped/args.h"
#include "kernels/grouped/group_products.h"
#include "kernels/grouped/grouped.h"
#include "kernels/winograd/points.h"

namespace resfuse {
namespace {

constexpr int kOutRows = F2::out;
constexpr int kAbreast = 2;
constexpr int kOutCols = kAbreast * F2::out;

// Four columns of the image, each transformed.
using BlockColumns = Vec[kOutCols][F2::in];

// The rows that a row of tiles reads, of one vector of channels.
template <class E>
struct TileRows {
    const typename E::Storage* row[F2::in];  // null: padding
    index_t width, pixel, pitch;
    index_t lanes;
    bool whole;  // no row is padding, all lanes are channels

    TileRows(const GroupedArgs& g, index_t oy, index_t channel)
        : width(g.image.width),
          pixel(g.image.pixel),
          pitch(g.image.row),
          lanes(at_most(kVectorFloats, g.channels - channel)),
          whole(lanes == kVectorFloats) {
        for (int i = 0; i < F2::in; ++i) {
            const index_t y = oy - g.window.pad_top + i;
            const bool inside = y >= 0 && y < g.image.height;
            row[i] = inside ? static_cast<const typename E::Storage*>(g.image.data) + y * pitch + channel : nullptr;
            whole = whole && inside;
        }
    }

    // Columns x to x + 3, all of them in the image.
    [[gnu::always_inline]] inline void inner(index_t x, BlockColumns& columns) const {
        Vec d[kOutCols][F2::in];
        const auto* from = row[0] + x * pixel;
#pragma GCC unroll 4
        for (int i = 0; i < F2::in; ++i, from += pitch) {
            from = opaque(from);
#pragma GCC unroll 4
            for (int c = 0; c < kOutCols; ++c) d[c][i] = E::load(from + c * pixel);
        }
        // The next tiles' new rows, lines too far apart for the hardware to see: into L2.
#pragma GCC unroll 2
        for (int i = 0; i < kOutRows; ++i, from += pitch) {
            from = opaque(from);
#pragma GCC unroll 4
            for (int c = 0; c < kOutCols; ++c) __builtin_prefetch(from + c * pixel, 0, 2);
        }
#pragma GCC unroll 4
        for (int c = 0; c < kOutCols; ++c) F2::input(d[c], 1, columns[c]);
    }

    [[gnu::noinline]] void outer(index_t x, BlockColumns& columns) const {
        for (int c = 0; c < kOutCols; ++c, ++x) {
            Vec d[F2::in];
            for (int i = 0; i < F2::in; ++i)
                d[i] = row[i] && x >= 0 && x < width ? E::load_first(row[i] + x * pixel, lanes) : zero();
            F2::input(d, 1, columns[c]);
        }
    }

    [[gnu::always_inline]] inline void load_columns(index_t x, BlockColumns& columns) const {
        whole&& x >= 0 && x + kOutCols <= width ? inner(x, columns) : outer(x, columns);
    }
};

// y[row][col] of a block.
template <int Group>
[[gnu::always_inline]] inline void block_outputs(const BlockColumns& own, const BlockColumns& next, const float* weight,
                                                 Vec (&y)[kOutRows][kOutCols]) {
    Vec sums[F2::in][kOutCols];
#pragma GCC unroll 4
    for (int i = 0; i < F2::in; ++i) {
        weight = opaque(weight);
        Vec v[kAbreast][F2::in], m[kAbreast][F2::in];
#pragma GCC unroll 2
        for (int t = 0; t < kAbreast; ++t) {
            Vec d[F2::in];
#pragma GCC unroll 4
            for (int j = 0; j < F2::in; ++j) {
                const int c = t * F2::out + j;
                d[j] = c < kOutCols ? own[c][i] : next[c - kOutCols][i];
            }
            F2::input(d, 1, v[t]);
        }
#pragma GCC unroll 4
        for (int j = 0; j < F2::in; ++j, weight += Group * kVectorFloats) {
            Vec x[kAbreast], products[kAbreast];
#pragma GCC unroll 2
            for (int t = 0; t < kAbreast; ++t) {
                x[t] = v[t][j];
                products[t] = zero();
            }
            add_group_products<Group, kAbreast>(weight, x, products);
#pragma GCC unroll 2
            for (int t = 0; t < kAbreast; ++t) m[t][j] = products[t];
        }
#pragma GCC unroll 2
        for (int t = 0; t < kAbreast; ++t) F2::output(m[t], 1, sums[i] + t * F2::out);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kOutCols; ++c) {
        Vec column[F2::in], outputs[kOutRows];
#pragma GCC unroll 4
        for (int i = 0; i < F2::in; ++i) column[i] = sums[i][c];
        F2::output(column, 1, outputs);
#pragma GCC unroll 2
        for (int r = 0; r < kOutRows; ++r) y[r][c] = outputs[r];
    }
}

// Output rows oy and oy + 1 of one vector of channels.
template <class E, int Group>
void grouped_f2_rows(const GroupedArgs& g, index_t oy, index_t channel) {
    using Storage = typename E::Storage;
    const TileRows<E> rows(g, oy, channel);
    const GroupEpilogue<E> epilogue(g, channel, rows.lanes);
    const float* const weight = g.weight + channel * F2::in * F2::in * Group;
    const index_t pitch = g.out_width * g.y_pixel;
    const index_t height = at_most(kOutRows, g.out_row_end - oy);
    BlockColumns columns[2];
    rows.load_columns(-g.window.pad_left, columns[0]);
    int own = 0;
    for (index_t ox = 0; ox < g.out_width; ox += kOutCols, own ^= 1) {
        rows.load_columns(ox - g.window.pad_left + kOutCols, columns[own ^ 1]);
        Storage* to = static_cast<Storage*>(g.y) + oy * pitch + ox * g.y_pixel + channel;
        Storage* ahead = to + kOutCols * g.y_pixel;
#pragma GCC unroll 2
        for (int r = 0; r < kOutRows; ++r, ahead += pitch) {
            ahead = opaque(ahead);
#pragma GCC unroll 4
            for (int c = 0; c < kOutCols; ++c) __builtin_prefetch(ahead + c * g.y_pixel, 1);
        }
        Vec y[kOutRows][kOutCols];
        block_outputs<Group>(columns[own], columns[own ^ 1], weight, y);
        const index_t width = at_most(kOutCols, g.out_width - ox);
        if (height == kOutRows && width == kOutCols && rows.lanes == kVectorFloats && !g.residual) {
#pragma GCC unroll 2
            for (int r = 0; r < kOutRows; ++r, to += pitch) {
                to = opaque(to);
#pragma GCC unroll 4
                for (int c = 0; c < kOutCols; ++c) epilogue.finish_whole(y[r][c], to + c * g.y_pixel);
            }
            continue;
        }
        const index_t residual = (oy * g.out_width + ox) * g.residual_pixel + channel;
        for (index_t r = 0; r < height; ++r)
            for (index_t c = 0; c < width; ++c)
                epilogue.finish(y[r][c],
                                g.residual ? static_cast<const Storage*>(g.residual) + residual +
                                                 (r * g.out_width + c) * g.residual_pixel
                                           : nullptr,
                                to + r * pitch + c * g.y_pixel);
    }
}

template <class E, int Group>
void grouped_f2_of(const GroupedArgs& g) {
    for (index_t c = g.channel_begin; c < g.channel_end; c += kVectorFloats)
        for (index_t oy = g.out_row_begin; oy < g.out_row_end; oy += kOutRows) {
            grouped_f2_rows<E, Group>(g, oy, c);
            const index_t rows = at_most(kOutRows, g.out_row_end - oy);
            GroupedElements<E>(g).finish(oy * g.out_width, rows * g.out_width, c,
                                         at_most(kVectorFloats, g.channels - c));
        }
}

}  // namespace
}  // namespace resfuse
