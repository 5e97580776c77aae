// Packing weights panel by panel.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

// What a panel's packing needs, but for the panel itself.
PackPanelArgs pack_args(const Layer& layer, const WeightSource& source);

// All panels of a layer, of so many floats each, by a kernel for one of them.
void pack_panels(const PackCall& call, index_t panel_floats, void (*pack_panel)(const PackPanelArgs&));

// All panels of quantised weights.
void pack_int8_panels(const PackCall& call, void (*pack_panel)(const PackInt8Args&), std::size_t panel_bytes);

}  // namespace resfuse
