// Powers of two that bring the rows and the columns of a matrix of weights to about the same magnitude.
#pragma once

#include "kernels/table.h"

namespace resfuse {

// The power of two near the root mean square of some values, given the sum of their squares; 1 for zeros and what is
// not finite.
double power_near(double squares, index_t n);

// The weights w[k][c] of a 1x1 convolution.
struct PointwiseWeights {
    const float* weight;
    index_t stride_k, stride_c;
    index_t outputs, inputs;
};

// Near the root mean square of each output channel's weights; 1 for zeros and what is not finite.
void output_powers(const PointwiseWeights& w, int threads, float* powers);

// Near that of each input channel's weights, once those of the output channels are divided by their powers.
void input_powers(const PointwiseWeights& w, const float* output_powers, int threads, float* powers);

}  // namespace resfuse
