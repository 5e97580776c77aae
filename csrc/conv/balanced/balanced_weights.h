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
    std::size_t bytes() const { return float_bytes(panels * panel + scales + steps); }
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

// An algorithm whose weights are packed so.
class BalancedAlgorithm : public ConvAlgorithm {
  public:
    std::size_t packed_bytes(const Layer& layer, const KernelTable& kernels) const override {
        return layout(layer, kernels).bytes();
    }
    void pack(const PackCall& call) const override;

    virtual BalancedLayout layout(const Layer& layer, const KernelTable& kernels) const = 0;

  protected:
    // Writes all panels, of so many floats each, and the powers of two that output channels and steps were divided by.
    virtual void pack_panels(const PackCall& call, index_t panel_floats, float* powers, float* step_powers) const = 0;
};

}  // namespace resfuse
