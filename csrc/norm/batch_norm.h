// Batch normalisation in training: two reading passes and two writing ones, forward and backward, over the pixels of
// channels_last tensors. Sums are taken over parts that depend on the sizes alone, and added in their order: results
// are the same bits for any number of threads.
#pragma once

#include <vector>

#include "kernels/table.h"

namespace resfuse {

struct Pixels {
    index_t rows, channels;
};

// Mean and (biased) variance of every channel.
void norm_statistics(const KernelTable& kernels, const float* x, Pixels pixels, float* mean, float* variance,
                     int threads);

// y = (x - mean) * scale + bias + residual, with ReLU where asked for; residual may be null.
void norm_forward(const KernelTable& kernels, const float* x, const float* residual, Pixels pixels, const float* mean,
                  const float* scale, const float* bias, bool relu, float* y, int threads);

struct NormBackward {
    const float* grad;
    const float* y;             // the ReLU's output, or null
    const float *scale, *bias;  // else what forward was given, where there is a ReLU; or null
    const float* x;
    const float* mean;
    const float* inverse_deviation;
    const float* weight;    // or null: ones
    bool batch_statistics;  // mean and deviation depend on x
    float* dx;              // may be grad
    float* dresidual;       // or null; may be grad where dx is not
    float* dweight;         // or null, like dbias
    float* dbias;
};
void norm_backward(const KernelTable& kernels, const NormBackward& g, Pixels pixels, int threads);

}  // namespace resfuse
