// Direct convolution, and stems by pairs of outputs, which share their step.
#pragma once

#include "plan/algorithm.h"
#include "weights/panels.h"

namespace resfuse {

const ConvAlgorithm& direct();
const ConvAlgorithm& winograd_rows();

// Of a panel of weights of winograd_rows.
index_t winograd_rows_panel_floats(const Layer& layer, const PanelGrid& grid);

std::unique_ptr<Step> make_direct_step(const StepContext& context, std::size_t layer, const ConvAlgorithm& algorithm);

}  // namespace resfuse
