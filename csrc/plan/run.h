// Executes a plan: one parallel region for the whole Program.
#pragma once

#include <vector>

#include "plan/plan.h"

namespace resfuse {

// `inputs` may have any strides where the plan was told so; `outputs` are dense NHWC. Where `step_seconds` is not null
// it gets the time of each of the plan's steps, waiting for the slowest thread included.
void run(const Plan& plan, const WeightSet& weights, const std::vector<Tensor>& inputs,
         const std::vector<Tensor>& outputs, std::vector<double>* step_seconds = nullptr);

}  // namespace resfuse
