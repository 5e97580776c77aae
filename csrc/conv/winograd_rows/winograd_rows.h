// Stems of 7 taps and stride 2 by F(2, 7) along rows (kernels/winograd/winograd_rows.h): 9 products instead of 14.
#pragma once

#include "plan/algorithm.h"
#include "weights/panels.h"

namespace resfuse {

const ConvAlgorithm& winograd_rows();

// Of a panel of weights.
index_t winograd_rows_panel_floats(const Layer& layer, const PanelGrid& grid);

std::unique_ptr<Step> make_winograd_rows_step(const StepContext& context, std::size_t layer);

}  // namespace resfuse
