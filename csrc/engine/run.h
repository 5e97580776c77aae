// Executes a plan: one parallel region for the whole Program.
#pragma once

#include <vector>

#include "engine/plan.h"

namespace resfuse {

// `inputs` may have any strides where the plan was told so; `outputs` are dense NHWC.
void run(const Plan& plan, const WeightSet& weights, const std::vector<Tensor>& inputs,
         const std::vector<Tensor>& outputs);

}  // namespace resfuse
