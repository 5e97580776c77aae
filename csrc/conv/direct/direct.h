// Direct convolution.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

const ConvAlgorithm& direct();
// Where an instruction multiplies pairs of the input's 16-bit elements.
const ConvAlgorithm& direct_pairs();

std::unique_ptr<Step> make_direct_step(const StepContext& context, std::size_t layer, const ConvAlgorithm& algorithm);

}  // namespace resfuse
