// Arguments of convolutions in small groups.
#pragma once

#include "kernels/activation/args.h"
#include "kernels/types.h"

namespace resfuse {

// Output channels [channel_begin, channel_end) and rows of one image, for a convolution whose groups have as many
// output as input channels, a vector at most. `channel_begin` is a multiple of vector_floats.
struct GroupedArgs {
    ImageView image;
    index_t channels;
    index_t group;  // channels of a group: 1, or another divisor of vector_floats
    WindowArgs window;
    // [channels / vector_floats, rounded up][points][group][vector_floats]: entry (i, l) is that of input channel
    // (l ^ i) % group. Points are the kernel's taps, of F(2x2, 3x3) its 16 products.
    // Of groups of a whole vector: (i, l) of input channel i, and taps as [groups][kernel_h][group][kernel_w][vector].
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
    // Of single elements: before they are rounded, of fp32 in a pass over what is in L1.
    ActivationArgs activation = {Activation::none, 0.0f};
    float* rows;  // scratch: span of the kernel's rows x input columns with padding x vector_floats; not of F(2x2, 3x3)
};

// One row of outputs of a depthwise convolution, whose input lies in rows with padding.
struct DepthwiseRowArgs {
    const float* const* rows;  // that each row of the kernel reads, from the first output on
    index_t pixel;             // floats between their pixels
    WindowArgs window;
    const float* weight;        // as GroupedArgs has them, from the first channel on
    const float *scale, *bias;  // likewise
    float floor;
    ActivationArgs activation;
    const float* residual;  // or null
    index_t residual_pixel;
    float* y;
    index_t y_pixel;
    index_t width, channels;
};

}  // namespace resfuse
