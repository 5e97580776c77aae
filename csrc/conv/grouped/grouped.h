// Convolutions in groups that are lanes of a vector (kernels/grouped): tap by tap, and as F(2x2, 3x3).
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

const ConvAlgorithm& grouped();
const ConvAlgorithm& grouped_f2();

std::unique_ptr<Step> make_grouped_step(const StepContext& context, std::size_t layer, const ConvAlgorithm& algorithm);

}  // namespace resfuse
