// Direct convolution.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

const ConvAlgorithm& direct();
// Where an instruction multiplies pairs of the input's 16-bit elements.
const ConvAlgorithm& direct_pairs();

std::unique_ptr<Step> make_direct_step(const StepContext& context, std::size_t layer, const ConvAlgorithm& algorithm);

// Whether a 1x1 convolution's step can multiply by the gate before it, which it alone reads, and gains by that.
bool can_take_gate(const StepContext& context, std::size_t gate, std::size_t layer);

std::unique_ptr<Step> make_gated_step(const StepContext& context, std::size_t gate, std::size_t layer);

}  // namespace resfuse
