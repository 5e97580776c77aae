// The ceiling of this machine, for benchmarks.
#pragma once

#include "kernels/table.h"

namespace resfuse {

// Multiply-adds per second of all threads together: the median of several runs of a few milliseconds.
double measure_multiply_adds(const KernelTable& kernels, int threads);

}  // namespace resfuse
