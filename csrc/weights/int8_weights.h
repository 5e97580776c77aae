// Weights as small integers.
#pragma once

#include <cstdint>
#include <vector>

#include "program/program.h"
#include "program/weight_source.h"

namespace resfuse {

// Of output channel k: weights q * steps[k], q from -128 to 127.
struct Int8Weights {
    std::vector<std::int8_t> weights;  // [out_channels][kernel_h][kernel_w][group_in]
    std::vector<float> steps;
    std::vector<std::int32_t> sums;  // of each channel's integers
    std::vector<double> lost;        // what rounding its weights takes from each channel's mean output
};

// Symmetric around zero and by output channel: a channel's largest magnitude becomes 127, or a little less where the
// sum of its magnitudes would be more than exact Winograd sums hold (most_magnitude), whatever algorithm computes it.
// Throws std::invalid_argument where weights are not finite, or given steps make them too large for that.
Int8Weights quantize_weights(const Layer& layer, const WeightSource& source, int threads);

// What the magnitudes of a channel's integers may sum up to at most, for layers that Winograd's algorithm may compute
// exactly: 255 times it is less than the 2^26 that its results distinguish. Else 0: no limit.
std::int64_t most_magnitude(const Layer& layer);

}  // namespace resfuse
