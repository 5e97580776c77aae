// Powers of two that bring the rows and the columns of a matrix of weights to about the same magnitude.
#pragma once

#include <vector>

#include "kernels/table.h"

namespace resfuse {

// Weights by output channel and step of the reduction.
struct WeightMatrix {
    const float* weight;
    index_t stride_k;
    index_t outputs;
    std::vector<index_t> steps;  // from an output channel's first weight to each of them
};

// Near the root mean square of each output channel's weights; 1 for zeros and what is not finite.
void output_powers(const WeightMatrix& w, int threads, float* powers);

// Near that of the weights of each step, once those of the output channels are divided by their powers.
void step_powers(const WeightMatrix& w, const float* output_powers, int threads, float* powers);

}  // namespace resfuse
