// Packing weights panel by panel.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

// What a panel's packing needs, but for the panel itself.
PackPanelArgs pack_args(const Layer& layer, const WeightSource& source);

// All panels of a layer, of so many floats each, by a kernel for one of them.
void pack_panels(const PackCall& call, index_t panel_floats, void (*pack_panel)(const PackPanelArgs&));

// Those of direct products of bytes.
void pack_int8_panels(const PackCall& call);

}  // namespace resfuse
