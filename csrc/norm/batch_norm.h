// Batch normalisation in training: two reading passes and two writing ones, forward and backward, over the pixels of
// channels_last tensors. Sums are taken over parts that depend on the sizes alone, and added in their order: results
// are the same bits for any number of threads.
#pragma once

#include <vector>

#include "kernels/table.h"

namespace resfuse {

// The sizes and the element type of feature maps; statistics, scales and their gradients are fp32.
struct Pixels {
    index_t rows, channels;
    DType type = DType::fp32;
};

// Mean and (biased) variance of every channel.
void norm_statistics(const KernelTable& kernels, const void* x, Pixels pixels, float* mean, float* variance,
                     int threads);

// y = (x - mean) * scale + bias + residual, with ReLU where asked for; residual may be null.
void norm_forward(const KernelTable& kernels, const void* x, const void* residual, Pixels pixels, const float* mean,
                  const float* scale, const float* bias, bool relu, void* y, int threads);

struct NormBackward {
    const void* grad;
    const void* y;              // the ReLU's output, or null
    const float *scale, *bias;  // else what forward was given, where there is a ReLU; or null
    const void* x;
    const float* mean;
    const float* inverse_deviation;
    const float* weight;    // or null: ones
    bool batch_statistics;  // mean and deviation depend on x
    void* dx;               // may be grad
    void* dresidual;        // or null; may be grad where dx is not
    float* dweight;         // or null, like dbias
    float* dbias;
};
void norm_backward(const KernelTable& kernels, const NormBackward& g, Pixels pixels, int threads);

}  // namespace resfuse
