// The weights of a convolution as the user holds them.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "kernels/table.h"
#include "program/stored_tensor.h"

namespace resfuse {

// Weights that are no plain float32: made real numbers each time that they are packed.
struct StoredWeights {
    StoredTensor tensor;  // [out_channels, in_channels / groups, kernel_h, kernel_w]
    // By output channel, or empty: integers stand for multiples of these steps, and real numbers are rounded to such.
    std::vector<float> steps;
};

// The weight tensor [out_channels, in_channels / groups, kernel_h, kernel_w] (never copied) with the folded batch norm
// beside it: y = scale[k] * (weight[k] * x) + bias[k]. Direct kernels apply the scale in their epilogue: folded into
// the weights, its rounding would be the same for every pixel and not average out in the head.
struct WeightSource {
    const float* weight = nullptr;
    std::array<index_t, 4> strides{};     // in floats
    std::vector<double> scale;            // empty: all ones
    std::vector<double> bias;             // empty: none
    std::vector<float> steps;             // of quantised weights, by output channel; empty: as their magnitudes ask for
    std::vector<float> means;             // of a quantised layer's input, by channel; empty: not known
    std::vector<double> lost;             // what rounding takes from each channel's mean output; empty: by the means
    std::optional<StoredWeights> stored;  // in place of `weight`
};

}  // namespace resfuse
