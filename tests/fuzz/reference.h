// What a Program computes, by its definition, in fp64: one plain loop a kind of layer.
#pragma once

#include <vector>

#include "plan/plan.h"

namespace fuzz {

struct LayerWeights {
    std::vector<float> weight;   // [out_channels][in_channels / groups][kernel_h][kernel_w]
    std::vector<double> scale;   // empty: ones
    std::vector<float> bias;     // empty: zeros
    std::vector<double> slopes;  // of prelu
};

// A dense NHWC batch.
struct Images {
    resfuse::index_t batch = 0, height = 0, width = 0, channels = 0;
    std::vector<double> values;
    double& at(resfuse::index_t n, resfuse::index_t y, resfuse::index_t x, resfuse::index_t c) {
        return values[static_cast<std::size_t>(((n * height + y) * width + x) * channels + c)];
    }
};

// Fills every buffer behind the inputs, which `buffers` holds already. Paddings and extents are the plan's.
void evaluate(const resfuse::Plan& plan, const std::vector<LayerWeights>& weights, std::vector<Images>& buffers);

}  // namespace fuzz
