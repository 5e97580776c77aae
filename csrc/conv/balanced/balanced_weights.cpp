#include "conv/balanced/balanced_weights.h"

#include <algorithm>

namespace resfuse {

void BalancedAlgorithm::pack(const PackCall& call) const {
    const BalancedLayout laid = layout(call.layer, call.kernels);
    float* const scale = call.floats() + laid.panels * laid.panel;
    float* const step_scale = scale + laid.scales;
    std::fill(scale, step_scale, 1.0f);
    pack_panels(call, laid.panel, scale, step_scale);
    for (index_t k = 0; k < call.layer.out_channels; ++k) scale[k] *= call.scale[k];
}

}  // namespace resfuse
