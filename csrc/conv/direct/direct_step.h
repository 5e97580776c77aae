// What the steps of direct convolutions share: the product of some rows with some panels of weights, and softmax.
#pragma once

#include "conv/conv_step.h"

namespace resfuse {

class DirectStep : public ConvStep {
  public:
    int stages() const override { return layer_.activation == Activation::softmax ? 2 : 1; }

  protected:
    static constexpr index_t kBlockFloats = 128 * 1024;  // of the rows of a product that a task keeps in L2

    DirectStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm)
        : ConvStep(context, index, algorithm), pooled_(context.pooled[index]) {}

    // The next few panels of one group, as even in number as can be, whose weights fit well into L2.
    Range chunk_from(index_t panel, index_t end) const;

    // The parts of a product that do not depend on where its rows are. Panels of one group.
    GemmArgs panel_args(Range panels, std::span<const index_t> segments, index_t segment_length,
                        const Wave& wave) const;

    // Into memory of some type's elements.
    void multiply(const GemmArgs& g, DType type, const Wave& wave) const;

    void softmax(index_t image, const Wave& wave) const;

    const Layer* const pooled_;  // the pooling layer behind, or null
};

// One product over the pixels of the wave, or over their windows (direct_flat_step.cpp).
std::unique_ptr<Step> make_direct_flat_step(const StepContext& context, std::size_t layer, bool gathered);

}  // namespace resfuse
