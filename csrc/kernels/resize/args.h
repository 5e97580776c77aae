// Arguments of resampling.
#pragma once

#include "kernels/types.h"

namespace resfuse {

// What one pixel or row of an output reads along one dimension: two of the input's, and the second one's weight.
struct ResizeTap {
    index_t first, second;
    float weight;
};

// One row of outputs: the taps of its pixels, in two rows of the input.
struct ResizeRowArgs {
    const void *top, *bottom;
    float bottom_weight;
    index_t pixel;  // elements between the input's pixels
    const ResizeTap* taps;
    index_t cols, channels;
    void* y;
    index_t y_pixel;
    bool nearest;  // the first taps alone, of the upper row
};

}  // namespace resfuse
