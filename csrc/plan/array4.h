// Outside memory of four dimensions, as NumPy, torch and files of ours hold feature maps.
#pragma once

#include <array>

#include "plan/step.h"
#include "program/stored_tensor.h"

namespace resfuse {

struct Array4 {
    void* data;
    std::array<index_t, 4> shape;    // [N, C, H, W]
    std::array<index_t, 4> strides;  // in elements
    DType type;

    float* floats() const { return static_cast<float*>(data); }
};

// Whether an [N, C, H, W] array lies in memory as dense NHWC.
bool is_dense_nhwc(const Array4& array);

// Whether it lies there as dense NCHW.
bool is_dense_nchw(const Array4& array);

// Such an array as a core tensor, of canonical strides.
Tensor to_planes(const Array4& array);

// The array as a core tensor; a dense one gets the canonical strides even where a dimension is 1.
Tensor to_tensor(const Array4& array);

}  // namespace resfuse
