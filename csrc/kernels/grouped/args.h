// Arguments of convolutions in small groups.
#pragma once

#include "kernels/activation/args.h"
#include "kernels/types.h"

namespace resfuse {

// Output channels [channel_begin, channel_end) and rows of one image, for a convolution whose groups have as many
// output as input channels, fewer than a vector. `channel_begin` is a multiple of vector_floats.
struct GroupedArgs {
    ImageView image;
    index_t channels;
    index_t group;  // channels of a group: 1, or another divisor of vector_floats
    WindowArgs window;
    // [channels / vector_floats, rounded up][points][group][vector_floats]: entry (i, l) is that of input channel
    // (l ^ i) % group. Points are the kernel's taps, of F(2x2, 3x3) its 16 products.
    const float* weight;
    const float* scale;  // channels floats
    const float* bias;   // channels floats
    void* y;
    index_t y_pixel;
    index_t out_width;
    index_t out_row_begin, out_row_end;  // F(2x2, 3x3): the first one is even
    index_t channel_begin, channel_end;
    const void* residual;  // or null
    index_t residual_pixel;
    float floor;
    // Of elements that are not fp32, whose every value is rounded once; fp32 ones are activated in a pass of their own.
    ActivationArgs activation = {Activation::none, 0.0f};
    float* rows;  // scratch: span of the kernel's rows x input columns with padding x vector_floats; not of F(2x2, 3x3)
};

}  // namespace resfuse
