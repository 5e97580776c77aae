#include "weights/real_weights.h"

#include <algorithm>
#include <cmath>

#include "machine/threads.h"

namespace resfuse {

namespace {

// The nearest multiple of a step that a signed byte counts, as torch computes it.
float rounded(float weight, float step) {
    const float steps = std::nearbyint(weight * (1.0f / step));
    return std::clamp(steps, -128.0f, 127.0f) * step;
}

}  // namespace

RealWeights::RealWeights(const Layer& layer, const WeightSource& source, int threads) : source_(source) {
    if (!source.stored) return;
    const StoredTensor& tensor = source.stored->tensor;
    const std::vector<float>& steps = source.stored->steps;
    const index_t channels = layer.group_in(), rows = layer.window.kernel_h, cols = layer.window.kernel_w;
    const index_t size = channels * rows * cols;
    values_.resize(static_cast<std::size_t>(layer.out_channels * size));
    const auto& stride = tensor.strides;
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
    for (index_t k = 0; k < layer.out_channels; ++k) {
        float* to = values_.data() + k * size;
        const float step = steps.empty() ? 1.0f : steps[static_cast<std::size_t>(k)];
        for (index_t c = 0; c < channels; ++c)
            for (index_t r = 0; r < rows; ++r)
                for (index_t s = 0; s < cols; ++s) {
                    const auto value = static_cast<float>(
                        stored_value(tensor, k * stride[0] + c * stride[1] + r * stride[2] + s * stride[3]));
                    *to++ = steps.empty() ? value : tensor.is_integer() ? value * step : rounded(value, step);
                }
    }
    made_ = source;
    made_->stored.reset();
    made_->weight = values_.data();
    made_->strides = {size, rows * cols, cols, 1};
}

}  // namespace resfuse
