// Packed weights whose rows and columns are divided by powers of two, so that products of sums of them stay small:
// panels, then the scales of output channels, then those of the steps of the reduction.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

struct BalancedLayout {
    index_t panels;
    index_t panel;   // floats of a panel, of Strassen's of each half of the output channels
    index_t scales;  // of output channels, as panels lay them
    index_t steps;   // of the reduction
    std::size_t floats() const { return static_cast<std::size_t>(panels * panel + scales + steps); }
};

struct BalancedWeights {
    const float* panels;
    index_t panel;
    const float* scale;       // the layer's times the powers of two that its products want
    const float* step_scale;  // what the input must be multiplied by, by step of the reduction
};
inline BalancedWeights balanced_weights(const BalancedLayout& layout, const float* packed) {
    const float* const scale = packed + layout.panels * layout.panel;
    return {packed, layout.panel, scale, scale + layout.scales};
}

// Packs by a function that writes panels, the powers of output channels and those of steps.
inline void pack_balanced(const PackCall& call, const BalancedLayout& layout,
                          void (*pack_all)(const PackCall&, index_t panel_floats, float* powers, float* step_powers)) {
    float* const scale = call.packed + layout.panels * layout.panel;
    float* const step_scale = scale + layout.scales;
    for (float* s = scale; s < step_scale; ++s) *s = 1.0f;
    pack_all(call, layout.panel, scale, step_scale);
    for (index_t k = 0; k < call.layer.out_channels; ++k) scale[k] *= call.scale[k];
}

}  // namespace resfuse
