// Convolution in groups of few channels (1: depthwise; 4 or 8: ResNeXt), vectorised over the output channels.
//
// A vector of output channels holds whole groups. Output channel l of a group of G needs the group's G input channels
// one after the other; so each input pixel is first written out G times, copy i holding the group's channel i in all of
// the group's lanes (zeros where there is padding). Every product is then an elementwise one that reads its input from
// L1, and a tile of output pixels shares each weight vector.
#pragma once

#include "kernels/element.h"
#include "kernels/layout.h"

namespace resfuse {
namespace {

constexpr int kGroupedPixels = kVectorFloats == 16 ? 14 : 8;  // whose accumulators stay in registers
constexpr index_t kL1Floats = 8 * 1024;                       // of the smaller L1s, 32 KiB
// A quarter of 48 KiB: with half of it, lines of the image that fall into the same sets push the ring out.
constexpr index_t kRingFloats = 3 * 1024;

struct Interval {
    index_t begin, end;
};

// Rows of copies, of a strip of the image's columns: a ring of as many input rows as the kernel spans, kept in L1.
struct CopyRing {
    float* data;
    index_t rows;             // of the padded image
    index_t first_col, cols;  // of the padded image
    index_t pixel;            // floats of one pixel's copies
    float* row(index_t y) const { return data + y % rows * cols * pixel; }
};

// Channel `Channel` of each group, in all the lanes of its group.
template <int Group, int Channel, std::size_t... Lane>
inline Vec repeat_channel(Vec v, std::index_sequence<Lane...>) {
    return __builtin_shufflevector(v, v, (static_cast<int>(Lane) / Group * Group + Channel)...);
}

template <int Group, std::size_t... Channel>
inline void store_copies(float* to, Vec v, std::index_sequence<Channel...>) {
    constexpr auto lanes = std::make_index_sequence<kVectorFloats>{};
    (store(to + Channel * kVectorFloats, repeat_channel<Group, static_cast<int>(Channel)>(v, lanes)), ...);
}

// `Whole`: all lanes are channels.
template <int Group, bool Whole>
inline void copy_pixels_of(const float* from, index_t pixel, index_t row, index_t pixels, index_t lanes, float* to) {
    for (index_t x = 0; x < pixels; ++x, from += pixel, to += Group * kVectorFloats) {
        const Vec v = Whole ? load(from) : load_first(from, lanes);
        // The same channels of the next row: a line of each pixel, too far apart for the hardware to see.
        __builtin_prefetch(from + row);
        store_copies<Group>(to, v, std::make_index_sequence<Group>{});
    }
}

template <int Group>
void copy_row(const GroupedArgs& g, const CopyRing& ring, index_t padded_y, index_t channel, index_t lanes) {
    constexpr index_t pixel = Group * kVectorFloats;
    float* const to = ring.row(padded_y);
    const index_t y = padded_y - g.pad_top;
    const index_t first = ring.first_col - g.pad_left;
    // Columns of the ring left of the image, and up to its right edge.
    const index_t left = at_most(first < 0 ? -first : 0, ring.cols);
    const index_t inside = at_most(g.image.width - first, ring.cols);
    if (y < 0 || y >= g.image.height || inside <= left) return fill_floats(to, ring.cols * pixel, 0.0f);
    fill_floats(to, left * pixel, 0.0f);
    const float* const from = g.image.data + y * g.image.row + (first + left) * g.image.pixel + channel;
    if (lanes == kVectorFloats) {
        copy_pixels_of<Group, true>(from, g.image.pixel, g.image.row, inside - left, lanes, to + left * pixel);
    } else {
        copy_pixels_of<Group, false>(from, g.image.pixel, g.image.row, inside - left, lanes, to + left * pixel);
    }
    fill_floats(to + inside * pixel, (ring.cols - inside) * pixel, 0.0f);
}

// `strip` is the strip's first output column. Stride 0 stands for one that is known at run time only.
template <int Group, int Stride, int Pixels>
inline void grouped_tile(const GroupedArgs& g, const CopyRing& ring, const float* weight, index_t oy, index_t ox,
                         index_t strip, index_t channel, index_t lanes) {
    constexpr index_t pixel = Group * kVectorFloats;
    const index_t step = (Stride > 0 ? Stride : g.stride_w) * pixel;
    float* const y = g.y + (oy * g.out_width + ox) * g.channels + channel;
    // A line of each pixel, too far apart for the hardware to see.
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) __builtin_prefetch(y + p * g.channels, 1);
    Vec acc[Pixels];
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) acc[p] = zero();
    for (index_t r = 0; r < g.kernel_h; ++r) {
        const float* row = ring.row(oy * g.stride_h + r * g.dilation_h) + (ox - strip) * step;
        for (index_t s = 0; s < g.kernel_w; ++s) {
            const float* x = row + s * g.dilation_w * pixel;
#pragma GCC unroll 8
            for (int i = 0; i < Group; ++i, weight += kVectorFloats) {
                const Vec w = load(weight);
#pragma GCC unroll 14
                for (int p = 0; p < Pixels; ++p) acc[p] += w * load(x + p * step + i * kVectorFloats);
            }
        }
    }
    const Vec scale = load_first(g.scale + channel, lanes), bias = load_first(g.bias + channel, lanes);
    const Vec floor = broadcast(g.floor);
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) {
        const index_t at = (oy * g.out_width + ox + p) * g.channels + channel;
        Vec v = acc[p] * scale + bias;
        if (g.residual) v += load_first(g.residual + at, lanes);
        store_first(g.y + at, clamp_below(v, floor), lanes);
    }
}

template <int Group, int Stride>
void grouped_strip(const GroupedArgs& g, const CopyRing& ring, Interval cols, index_t channel) {
    const float* weight = g.weight + channel / kVectorFloats * g.kernel_h * g.kernel_w * ring.pixel;
    const index_t lanes = at_most(kVectorFloats, g.channels - channel);
    index_t copied = g.out_row_begin * g.stride_h;  // rows of the padded image before this one are in the ring
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy) {
        const index_t first = oy * g.stride_h;
        if (copied < first) copied = first;
        for (; copied < first + ring.rows; ++copied) copy_row<Group>(g, ring, copied, channel, lanes);
        const auto tiles = [&]<int Pixels>(index_t ox) {
            for (; ox + Pixels <= cols.end; ox += Pixels)
                grouped_tile<Group, Stride, Pixels>(g, ring, weight, oy, ox, cols.begin, channel, lanes);
            return ox;
        };
        index_t ox = tiles.template operator()<kGroupedPixels>(cols.begin);
        ox = tiles.template operator()<7>(ox);
        ox = tiles.template operator()<3>(ox);
        tiles.template operator()<1>(ox);
    }
}

template <int Group, int Stride>
void grouped_rows(const GroupedArgs& g) {
    constexpr index_t pixel = Group * kVectorFloats;
    const index_t span_h = (g.kernel_h - 1) * g.dilation_h + 1, span_w = (g.kernel_w - 1) * g.dilation_w + 1;
    // A strip is as wide as L1 holds, in whole tiles, or in halves of one where not even that fits.
    const index_t fit = (kRingFloats / (span_h * pixel) - span_w) / g.stride_w + 1;
    const index_t ring = span_h * ((kGroupedPixels - 1) * g.stride_w + span_w) * pixel;  // of one tile
    const index_t tile = ring > kL1Floats ? kGroupedPixels / 2 : kGroupedPixels;
    const index_t width = fit > tile ? fit / tile * tile : tile;
    for (index_t c = g.channel_begin; c < g.channel_end; c += kVectorFloats)
        for (index_t strip = 0; strip < g.out_width; strip += width) {
            const index_t end = at_most(strip + width, g.out_width);
            const CopyRing ring{g.copies, span_h, strip * g.stride_w, (end - 1 - strip) * g.stride_w + span_w, pixel};
            grouped_strip<Group, Stride>(g, ring, {strip, end}, c);
        }
}

template <int Group>
void grouped_of(const GroupedArgs& g) {
    if (g.stride_w == 1) return grouped_rows<Group, 1>(g);
    if (g.stride_w == 2) return grouped_rows<Group, 2>(g);
    grouped_rows<Group, 0>(g);
}

// Groups that divide a vector, and are smaller than it.
void grouped(const GroupedArgs& g) {
    if (g.group == 1) return grouped_of<1>(g);
    if (g.group == 2) return grouped_of<2>(g);
    if constexpr (kVectorFloats > 4)
        if (g.group == 4) return grouped_of<4>(g);
    if constexpr (kVectorFloats > 8)
        if (g.group == 8) return grouped_of<8>(g);
}

}  // namespace
}  // namespace resfuse
