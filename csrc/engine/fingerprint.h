// A cheap hash of a few samples of each array. Version counters miss writes through aliases (p.data.mul_()); a write
// that changes a whole array is seen here.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace resfuse {

struct SampledArray {
    const float* data;
    index_t floats;  // contiguous
};

std::uint64_t fingerprint(const std::vector<SampledArray>& arrays);

}  // namespace resfuse
