// Arguments of batch normalisation in training.
#pragma once

#include "kernels/activation/args.h"
#include "kernels/types.h"

namespace resfuse {

// Sums over rows of channels: the pixels of channels_last images.
struct NormSumsArgs {
    const void* x;
    index_t x_pixel;
    index_t rows, channels;
    const float* shift;  // per channel, near its mean
    float* scratch;      // 2 * channels
    double* sums;        // [2][channels]
};

// y = activated(max(((x - mean) * scale + bias) * product + residual, floor)), of pixels some elements apart.
struct NormApplyArgs {
    const void* x;
    index_t x_pixel;
    const void* product;  // or null
    index_t product_pixel;
    const void* residual;  // or null
    index_t residual_pixel;
    index_t rows, channels;
    const float *mean, *scale, *bias;
    float floor;
    void* y;
    index_t y_pixel;
    ActivationArgs activation = {Activation::none, 0.0f};  // of single elements
};

// Layer normalisation (Ba et al., 2016, "Layer Normalization") of each pixel over its channels: y = activated((x -
// mean) / sqrt(variance + eps) * scale + bias).
struct LayerNormArgs {
    const void* x;
    index_t x_pixel;
    index_t rows, channels;
    float eps;
    const float *scale, *bias;
    void* y;
    index_t y_pixel;
    float floor;
    ActivationArgs activation;
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
