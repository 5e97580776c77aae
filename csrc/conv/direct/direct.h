// Direct convolution.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

const ConvAlgorithm& direct();

std::unique_ptr<Step> make_direct_step(const StepContext& context, std::size_t layer);

}  // namespace resfuse
