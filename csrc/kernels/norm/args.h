// Arguments of batch normalisation in training.
#pragma once

#include "kernels/activation/args.h"
#include "kernels/types.h"

namespace resfuse {

// Batch normalisation in training. Tensors are rows of channels, dense: the pixels of channels_last images.
struct NormSumsArgs {
    const void* x;
    index_t rows, channels;
    const float* shift;  // per channel, near its mean
    float* scratch;      // 2 * channels
    double* sums;        // [2][channels]
};

// y = max((x - mean) * scale + bias + residual, floor)
struct NormApplyArgs {
    const void* x;
    const void* residual;  // or null
    index_t rows, channels;
    const float *mean, *scale, *bias;
    float floor;
    void* y;
    // Of elements that are not fp32, whose every value is rounded once; fp32 ones are activated in a pass of their own.
    ActivationArgs activation = {Activation::none, 0.0f};
};

// The gradient behind a ReLU: that of its output, where the output is positive.
struct NormGrad {
    const void* grad;
    const void* y;              // the ReLU's output, or null
    const float *scale, *bias;  // else what it is computed from; null: there is no ReLU
    const void* x;
    const float* mean;
    index_t rows, channels;
};

struct NormGradSumsArgs {
    NormGrad g;
    float* scratch;  // 2 * channels
    double* sums;    // [2][channels]
};

// dx = of_grad * g + of_x * (x - mean) + constant, dresidual = g; both may be grad itself.
struct NormGradArgs {
    NormGrad g;
    const float *of_grad, *of_x, *constant;
    void* dx;
    void* dresidual;  // or null
};

}  // namespace resfuse
