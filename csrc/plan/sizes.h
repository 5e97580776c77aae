// The first job of a plan: the height and width of every buffer.
#pragma once

#include <vector>

#include "plan/buffer.h"

namespace resfuse {

struct Sizes {
    std::vector<Layer> layers;           // the program's, paddings resolved
    std::vector<PlannedBuffer> buffers;  // channels, types and extents
};

// Throws std::invalid_argument where the inputs do not fit the program.
Sizes infer_sizes(const Program& program, index_t batch, const std::vector<InputShape>& inputs);

}  // namespace resfuse
