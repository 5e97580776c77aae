// The gradient of a convolution's weights.
#pragma once

#include "plan/step.h"

namespace resfuse {

// x [batch, in_channels, ...] and grad [batch, out_channels, ...] of one type, in dense NHWC; fp32 dw[k][c][r][s] with
// `dw_strides` in floats. One group. Winograd where the layer allows it, it pays, and `algorithm` is not direct.
struct WeightGradient {
    Layer layer;  // window with its paddings resolved
    Extent in, out;
    index_t batch;
    Tensor x, grad;
    float* dw;
    std::array<index_t, 4> dw_strides;
};

// Results are the same bits for any number of threads.
void weight_gradient(const KernelTable& kernels, const WeightGradient& g, int threads);

// The two ways to compute it.
void direct_weight_gradient(const KernelTable& kernels, const WeightGradient& g, int threads);
void winograd_weight_gradient(const KernelTable& kernels, const WeightGradient& g, int threads);

}  // namespace resfuse
