// Max-pooling in training: forward with the taps of the maxima, and its gradient. Dense NHWC.
#pragma once

#include "plan/step.h"

namespace resfuse {

struct PoolShape {
    Window window;  // paddings resolved; at most 8 x 8, no dilation
    Extent in, out;
    index_t batch, channels;
    DType type = DType::fp32;
};

void max_pool_forward(const KernelTable& kernels, const PoolShape& shape, const void* x, void* y, std::uint8_t* taps,
                      int threads);
void max_pool_backward(const KernelTable& kernels, const PoolShape& shape, const void* grad, const std::uint8_t* taps,
                       void* dx, int threads);

}  // namespace resfuse
