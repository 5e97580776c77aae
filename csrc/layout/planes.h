// Images of channels_last memory as planes of channels, for who wants contiguous memory.
#pragma once

#include "plan/step.h"

namespace resfuse {

// Dense NHWC to dense NCHW.
void copy_to_planes(const KernelTable& kernels, const float* x, index_t images, index_t channels, index_t pixels,
                    float* y, int threads);

}  // namespace resfuse
