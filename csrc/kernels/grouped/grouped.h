// Convolution in groups of few channels (1: depthwise; 4, 8 or 16: ResNeXt), vectorised over the output channels.
//
// The rows that a row of outputs reads are copied to a ring of padded rows first. A tile of output pixels then shares
// each weight vector (group_products.h).
#pragma once

#include "kernels/grouped/args.h"
#include "kernels/grouped/group_products.h"
#include "kernels/grouped/vector_groups.h"
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

// Feature maps of elements of one type: how a convolution in groups reads them, and how its results become them.
template <class E>
class GroupedElements {
  public:
    using Storage = typename E::Storage;

    explicit GroupedElements(const GroupedArgs& g) : g_(g) {}

    // A vector from element `i` of the image on. `Whole`: all lanes are channels.
    template <bool Whole>
    [[gnu::always_inline]] Vec read(index_t i, index_t lanes) const {
        const Storage* const from = static_cast<const Storage*>(g_.image.data) + i;
        return Whole ? E::load(from) : E::load_first(from, lanes);
    }
    void prefetch(index_t i) const { __builtin_prefetch(static_cast<const Storage*>(g_.image.data) + i); }
    void prefetch_result(index_t i) const { __builtin_prefetch(static_cast<const Storage*>(g_.y) + i, 1); }

    // Writes one vector of channels of some pixels.
    struct Results {
        GroupEpilogue<E> epilogue;
        const Storage* residual;
        Storage* y;
        index_t residual_pixel, y_pixel;

        [[gnu::always_inline]] void operator()(Vec sum, index_t pixel) const {
            epilogue.finish(sum, residual ? residual + pixel * residual_pixel : nullptr, y + pixel * y_pixel);
        }
    };
    [[gnu::always_inline]] Results results(index_t first_pixel, index_t channel, index_t lanes) const {
        const auto* const residual = static_cast<const Storage*>(g_.residual);
        return {GroupEpilogue<E>(g_, channel, lanes),
                residual ? residual + first_pixel * g_.residual_pixel + channel : nullptr,
                static_cast<Storage*>(g_.y) + first_pixel * g_.y_pixel + channel, g_.residual_pixel, g_.y_pixel};
    }

    // What is left to do for some pixels that are written.
    void finish(index_t first_pixel, index_t pixels, index_t channel, index_t lanes) const {
        if constexpr (std::is_same_v<E, Fp32>)
            if (g_.activation.kind != Activation::none)
                activate<E>({from_channel(g_.activation, channel),
                             static_cast<Storage*>(g_.y) + first_pixel * g_.y_pixel + channel, pixels, g_.y_pixel,
                             lanes});
    }

  private:
    const GroupedArgs& g_;
};

template <bool Whole, class Maps>
inline void copy_pixels_of(const Maps& maps, index_t from, index_t pixel, index_t ahead, index_t pixels, index_t lanes,
                           float* to) {
    for (index_t x = 0; x < pixels; ++x, from += pixel, to += kVectorFloats) {
        // The same channels of a row to come: a line of each pixel, too far apart for the hardware to see.
        maps.prefetch(from + ahead);
        store(to, maps.template read<Whole>(from, lanes));
    }
}

template <class Maps>
void copy_row(const Maps& maps, const GroupedArgs& g, const RowRing& ring, index_t padded_y, index_t channel,
              index_t lanes) {
    float* const to = ring.row(padded_y);
    const index_t y = padded_y - g.window.pad_top;
    const index_t first = ring.first_col - g.window.pad_left;
    // Columns of the ring left of the image, and up to its right edge.
    const index_t left = at_most(first < 0 ? -first : 0, ring.cols);
    const index_t inside = at_most(g.image.width - first, ring.cols);
    if (y < 0 || y >= g.image.height || inside <= left) return fill_zeros<Fp32>(to, ring.cols * kVectorFloats);
    fill_zeros<Fp32>(to, left * kVectorFloats);
    const index_t from = y * g.image.row + (first + left) * g.image.pixel + channel;
    const index_t ahead = g.window.stride_h * g.image.row;
    if (lanes == kVectorFloats) {
        copy_pixels_of<true>(maps, from, g.image.pixel, ahead, inside - left, lanes, to + left * kVectorFloats);
    } else {
        copy_pixels_of<false>(maps, from, g.image.pixel, ahead, inside - left, lanes, to + left * kVectorFloats);
    }
    fill_zeros<Fp32>(to + inside * kVectorFloats, (ring.cols - inside) * kVectorFloats);
}

// `strip` is the strip's first output column. Stride 0 stands for one that is known at run time only.
template <int Group, int Stride, int Pixels, class Maps>
inline void grouped_tile(const Maps& maps, const GroupedArgs& g, const RowRing& ring, const float* weight, index_t oy,
                         index_t ox, index_t strip, index_t channel, index_t lanes) {
    const index_t step = (Stride > 0 ? Stride : g.window.stride_w) * kVectorFloats;
    const index_t pixel = oy * g.out_width + ox;
    // A line of each pixel, too far apart for the hardware to see.
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) maps.prefetch_result((pixel + p) * g.y_pixel + channel);
    Vec acc[Pixels];
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) acc[p] = zero();
    for (index_t r = 0; r < g.window.kernel_h; ++r) {
        const float* row = ring.row(oy * g.window.stride_h + r * g.window.dilation_h) + (ox - strip) * step;
        if constexpr (Group == kVectorFloats) {
            add_kernel_row<Stride, Pixels>(row, step, g.window.dilation_w * kVectorFloats, g.window.kernel_w, weight,
                                           acc);
            weight += g.window.kernel_w * Group * kVectorFloats;
            continue;
        }
        for (index_t s = 0; s < g.window.kernel_w; ++s) {
            Vec x[Pixels];
#pragma GCC unroll 14
            for (int p = 0; p < Pixels; ++p) x[p] = load(row + s * g.window.dilation_w * kVectorFloats + p * step);
            add_group_products<Group, Pixels>(weight, x, acc);
            weight += Group * kVectorFloats;
        }
    }
    const auto result = maps.results(pixel, channel, lanes);
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) result(acc[p], p);
}

template <int Group, int Stride, class Maps>
void grouped_strip(const Maps& maps, const GroupedArgs& g, const RowRing& ring, Interval cols, index_t channel) {
    const float* weight = g.weight + channel * g.window.kernel_h * g.window.kernel_w * Group;
    const index_t lanes = at_most(kVectorFloats, g.channels - channel);
    index_t copied = g.out_row_begin * g.window.stride_h;  // rows of the padded image before this one are in the ring
    for (index_t oy = g.out_row_begin; oy < g.out_row_end; ++oy) {
        const index_t first = oy * g.window.stride_h;
        if (copied < first) copied = first;
        for (; copied < first + ring.rows; ++copied) copy_row(maps, g, ring, copied, channel, lanes);
        const auto tiles = [&]<int Pixels>(index_t ox) {
            for (; ox + Pixels <= cols.end; ox += Pixels)
                grouped_tile<Group, Stride, Pixels>(maps, g, ring, weight, oy, ox, cols.begin, channel, lanes);
            return ox;
        };
        index_t ox = tiles.template operator()<kGroupedPixels>(cols.begin);
        ox = tiles.template operator()<7>(ox);
        ox = tiles.template operator()<3>(ox);
        tiles.template operator()<1>(ox);
        maps.finish(oy * g.out_width + cols.begin, cols.end - cols.begin, channel, lanes);
    }
}

template <int Group, int Stride, class Maps>
void grouped_rows(const Maps& maps, const GroupedArgs& g) {
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
            grouped_strip<Group, Stride>(maps, g, ring, {strip, end}, c);
        }
}

template <int Group, class Maps>
void grouped_of(const Maps& maps, const GroupedArgs& g) {
    if (g.window.stride_w == 1) return grouped_rows<Group, 1>(maps, g);
    if (g.window.stride_w == 2) return grouped_rows<Group, 2>(maps, g);
    grouped_rows<Group, 0>(maps, g);
}

// Any kernel, stride and dilation.
template <class E>
void grouped(const GroupedArgs& g) {
    with_group(g.group, [&]<int Group>() { grouped_of<Group>(GroupedElements<E>(g), g); });
}

}  // namespace
}  // namespace resfuse
