// Convolution in groups of few channels (1: depthwise; 4 or 8: ResNeXt), vectorised over the output channels.
//
// The rows that a row of outputs reads are copied to a ring of padded rows first. A tile of output pixels then shares
// each weight vector (group_products.h).
#pragma once

#include "kernels/grouped/args.h"
#include "kernels/grouped/group_products.h"
#include "kernels/layout/layout.h"

namespace resfuse {
namespace {

constexpr int kGroupedPixels = kVectorFloats == 16 ? 14 : 8;  // whose accumulators stay in registers
// A quarter of 48 KiB: with half of it, lines of the image that fall into the same sets push the ring out.
constexpr index_t kRingFloats = 3 * 1024;

struct Interval {
    index_t begin, end;
};

// One vector of channels of a strip of the image's columns: as many rows as the kernel spans, kept in L1.
struct RowRing {
    float* data;
    index_t rows;             // of the padded image
    index_t first_col, cols;  // of the padded image
    float* row(index_t y) const { return data + y % rows * cols * kVectorFloats; }
};

// `Whole`: all lanes are channels.
template <class E, bool Whole>
inline void copy_pixels_of(const typename E::Storage* from, index_t pixel, index_t ahead, index_t pixels, index_t lanes,
                           float* to) {
    for (index_t x = 0; x < pixels; ++x, from += pixel, to += kVectorFloats) {
        // The same channels of a row to come: a line of each pixel, too far apart for the hardware to see.
        __builtin_prefetch(from + ahead);
        store(to, Whole ? E::load(from) : E::load_first(from, lanes));
    }
}

template <class E>
void copy_row(const GroupedArgs& g, const RowRing& ring, index_t padded_y, index_t channel, index_t lanes) {
    float* const to = ring.row(padded_y);
    const index_t y = padded_y - g.window.pad_top;
    const index_t first = ring.first_col - g.window.pad_left;
    // Columns of the ring left of the image, and up to its right edge.
    const index_t left = at_most(first < 0 ? -first : 0, ring.cols);
    const index_t inside = at_most(g.image.width - first, ring.cols);
    if (y < 0 || y >= g.image.height || inside <= left) return fill_zeros<Fp32>(to, ring.cols * kVectorFloats);
    fill_zeros<Fp32>(to, left * kVectorFloats);
    const auto* const from = static_cast<const typename E::Storage*>(g.image.data) + y * g.image.row +
                             (first + left) * g.image.pixel + channel;
    const index_t ahead = g.window.stride_h * g.image.row;
    if (lanes == kVectorFloats) {
        copy_pixels_of<E, true>(from, g.image.pixel, ahead, inside - left, lanes, to + left * kVectorFloats);
    } else {
        copy_pixels_of<E, false>(from, g.image.pixel, ahead, inside - left, lanes, to + left * kVectorFloats);
    }
    fill_zeros<Fp32>(to + inside * kVectorFloats, (ring.cols - inside) * kVectorFloats);
}

// `strip` is the strip's first output column. Stride 0 stands for one that is known at run time only.
template <class E, int Group, int Stride, int Pixels>
inline void grouped_tile(const GroupedArgs& g, const RowRing& ring, const float* weight, index_t oy, index_t ox,
                         index_t strip, index_t channel, index_t lanes) {
    const index_t step = (Stride > 0 ? Stride : g.window.stride_w) * kVectorFloats;
    using Storage = typename E::Storage;
    Storage* const y = static_cast<Storage*>(g.y) + (oy * g.out_width + ox) * g.y_pixel + channel;
    // A line of each pixel, too far apart for the hardware to see.
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) __builtin_prefetch(y + p * g.y_pixel, 1);
    Vec acc[Pixels];
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) acc[p] = zero();
    for (index_t r = 0; r < g.window.kernel_h; ++r) {
        const float* row = ring.row(oy * g.window.stride_h + r * g.window.dilation_h) + (ox - strip) * step;
        for (index_t s = 0; s < g.window.kernel_w; ++s) {
            Vec x[Pixels];
#pragma GCC unroll 14
            for (int p = 0; p < Pixels; ++p) x[p] = load(row + s * g.window.dilation_w * kVectorFloats + p * step);
            add_group_products<Group, Pixels>(weight, x, acc);
            weight += Group * kVectorFloats;
        }
    }
    const GroupEpilogue<E> epilogue(g, channel, lanes);
    const Storage* const residual =
        g.residual ? static_cast<const Storage*>(g.residual) + (oy * g.out_width + ox) * g.residual_pixel + channel
                   : nullptr;
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p)
        epilogue.finish(acc[p], residual ? residual + p * g.residual_pixel : nullptr, y + p * g.y_pixel);
}

template <class E, int Group, int Stride>
void grouped_strip(const GroupedArgs& g, const RowRing& ring, Interval cols, index_t channel) {
    const float* weight = g.weight + channel * g.window.kernel_h * g.window.kernel_w * Group;
    const index_t lanes = at_most(kVectorFloats, g.channels - channel);
    index_t copied = g.out_row_begin * g.window.stride_h;  // rows of the padded image before this one are in the ring
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy) {
        const index_t first = oy * g.window.stride_h;
        if (copied < first) copied = first;
        for (; copied < first + ring.rows; ++copied) copy_row<E>(g, ring, copied, channel, lanes);
        const auto tiles = [&]<int Pixels>(index_t ox) {
            for (; ox + Pixels <= cols.end; ox += Pixels)
                grouped_tile<E, Group, Stride, Pixels>(g, ring, weight, oy, ox, cols.begin, channel, lanes);
            return ox;
        };
        index_t ox = tiles.template operator()<kGroupedPixels>(cols.begin);
        ox = tiles.template operator()<7>(ox);
        ox = tiles.template operator()<3>(ox);
        tiles.template operator()<1>(ox);
    }
}

template <class E, int Group, int Stride>
void grouped_rows(const GroupedArgs& g) {
    const index_t span_h = (g.window.kernel_h - 1) * g.window.dilation_h + 1,
                  span_w = (g.window.kernel_w - 1) * g.window.dilation_w + 1;
    // A strip is as wide as L1 holds, in whole tiles.
    const index_t fit = (kRingFloats / (span_h * kVectorFloats) - span_w) / g.window.stride_w + 1;
    const index_t width = fit > kGroupedPixels ? fit / kGroupedPixels * kGroupedPixels : kGroupedPixels;
    for (index_t c = g.channel_begin; c < g.channel_end; c += kVectorFloats)
        for (index_t strip = 0; strip < g.out_width; strip += width) {
            const index_t end = at_most(strip + width, g.out_width);
            const RowRing ring{g.rows, span_h, strip * g.window.stride_w,
                               (end - 1 - strip) * g.window.stride_w + span_w};
            grouped_strip<E, Group, Stride>(g, ring, {strip, end}, c);
        }
}

template <class E, int Group>
void grouped_of(const GroupedArgs& g) {
    if (g.window.stride_w == 1) return grouped_rows<E, Group, 1>(g);
    if (g.window.stride_w == 2) return grouped_rows<E, Group, 2>(g);
    grouped_rows<E, Group, 0>(g);
}

// Any kernel, stride and dilation.
template <class E>
void grouped(const GroupedArgs& g) {
    with_group(g.group, [&]<int Group>() { grouped_of<E, Group>(g); });
}

}  // namespace
}  // namespace resfuse
