// Arguments of pools.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace resfuse {

struct MaxPoolArgs {
    ImageView image;
    index_t channels;
    WindowArgs window;
    void* y;
    index_t y_row;    // elements between output rows
    index_t y_pixel;  // and pixels
    index_t out_width;
    index_t out_row_begin;
    index_t out_row_end;
};

// The means of the same windows, without dilation.
struct AvgPoolArgs {
    MaxPoolArgs pool;
    index_t pad_bottom, pad_right;
    bool counts_padding;  // as zeros
};

// Sums over the pixels of one image. Strides in elements; `sums` are fp64 for fp64, fp32 for all others. The walks want
// the columns to be the pixels with the smaller stride.
struct PoolSumArgs {
    const void* x;
    index_t channels, rows, cols;
    index_t stride_c, stride_h, stride_w;
    void* sums;     // channels accumulators
    bool by_pixel;  // the order of each channel's sum follows from the number of pixels alone, not from strides
};

// Means of sums that were taken in `parts` parts: y = (sums[0] + sums[part_stride] + ...) / pixels.
struct PoolMeanArgs {
    const void* sums;
    index_t parts, part_stride;
    index_t channels;
    index_t pixels;
    void* y;
    index_t stride_y;
};

// dx[c, h, w] = grad[c] / pixels.
struct PoolSpreadArgs {
    const void* grad;
    index_t stride_grad;
    index_t pixels;
    void* dx;
    index_t channels, rows, cols;
    index_t stride_c, stride_h, stride_w;
};

// Max-pooling that remembers where its maxima were: tap r * kernel_w + s of each window, the first of equals.
struct MaxPoolIndexArgs {
    MaxPoolArgs pool;
    std::uint8_t* taps;  // as y
};

// Its gradient, without dilation, for rows [row_begin, row_end) of the input: each pixel gathers from the windows whose
// maximum it was.
struct MaxPoolGradArgs {
    const void* grad;          // dense
    const std::uint8_t* taps;  // dense
    index_t out_height, out_width, channels;
    WindowArgs window;
    void* dx;  // of row `row_begin`, dense
    index_t width, row_begin, row_end;
};

}  // namespace resfuse
