// Images of channels_last memory as planes of channels, for who wants contiguous memory.
#pragma once

#include "plan/step.h"

namespace resfuse {

// The cache lines of a plane of so many pixels, of which tasks take some.
inline index_t lines_of_plane(index_t pixels) { return ceil_div(pixels, kLineFloats); }

// Some cache lines of all planes of one image, whose pixels are `pixel` elements apart in x.
void copy_lines_to_planes(const KernelTable& kernels, DType type, const void* x, index_t pixel, Range lines,
                          index_t channels, index_t pixels, void* y);

// Dense NHWC to dense NCHW.
void copy_to_planes(const KernelTable& kernels, const float* x, index_t images, index_t channels, index_t pixels,
                    float* y, int threads);

}  // namespace resfuse
