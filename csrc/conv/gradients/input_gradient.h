// The gradient of a strided convolution's input.
#pragma once

#include "plan/step.h"

namespace resfuse {

// grad [batch, out_channels, ...] and dx [batch, in_channels, ...] of one type, in dense NHWC; fp32 weight[k][c][r][s]
// with `strides` in floats. One group, dilation 1. (At stride 1 the gradient is a convolution, and a Program computes
// it.)
struct InputGradient {
    Layer layer;  // window with its paddings resolved
    Extent in, out;
    index_t batch;
    const float* weight;
    std::array<index_t, 4> strides;
    Tensor grad, dx;
    bool accumulate;  // add to dx
};

// Results are the same bits for any number of threads.
void input_gradient(const KernelTable& kernels, const InputGradient& g, int threads);

}  // namespace resfuse
