// Executes a plan: one parallel region for the whole Program.
#pragma once

#include <functional>
#include <vector>

#include "plan/plan.h"

namespace resfuse {

// One of the tasks that a stage of a step hands out.
struct TaskTime {
    std::size_t step;
    index_t first_image;  // of its wave
    int stage;
    index_t task;
    double seconds;
};

// `inputs` may have any strides where the plan was told so; `outputs` are dense NHWC. Where `step_seconds` is not null
// it gets the time of each of the plan's steps, waiting for the slowest thread included.
//
// The calling thread asks `may_go_on`, if given, while the others have begun: for what is found to be so nearly always,
// and takes time to look at. Where it says no the run ends behind the stage that the others are in. Returns whether it
// may have its outputs; else they are without a meaning.
bool run(const Plan& plan, const WeightSet& weights, const std::vector<Tensor>& inputs,
         const std::vector<Tensor>& outputs, std::vector<double>* step_seconds = nullptr,
         const std::function<bool()>& may_go_on = {});

// What each task takes on a core of its thread's own, for plans of more threads than there are cores: the calling
// thread plays them one after the other, each through all steps, so that its caches hold what that thread's would.
// Results are numbers without a meaning, as no thread waits for what another makes.
std::vector<TaskTime> time_tasks(const Plan& plan, const WeightSet& weights, const std::vector<Tensor>& inputs,
                                 const std::vector<Tensor>& outputs);

}  // namespace resfuse
