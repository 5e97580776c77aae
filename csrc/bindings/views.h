// NumPy arrays as plain pointers and strides; every check of outside memory is made here, once.
#pragma once

#include <pybind11/numpy.h>

#include <array>
#include <string>

#include "plan/step.h"

struct Array4 {
    void* data;
    std::array<resfuse::index_t, 4> shape;
    std::array<resfuse::index_t, 4> strides;  // in elements
    resfuse::DType type;

    float* floats() const { return static_cast<float*>(data); }
};

// The floats of a dense one-dimensional float32 array of `size`; throws TypeError or ValueError that names `what`.
float* vector_data(const pybind11::array& array, resfuse::index_t size, const std::string& what);

std::string shape_text(const std::array<resfuse::index_t, 4>& shape);

// An array of four dimensions, of float32, float16, or for bf16, which NumPy does not know, uint16. Throws TypeError or
// ValueError that names `what`.
Array4 array4(const pybind11::array& array, const std::string& what, resfuse::DType type = resfuse::DType::fp32);

// The same of an array of any of these types.
Array4 feature_map(const pybind11::array& array, const std::string& what);

// Whether an [N, C, H, W] array lies in memory as dense NHWC.
bool is_dense_nhwc(const Array4& array);

// Whether it lies there as dense NCHW.
bool is_dense_nchw(const Array4& array);

// Such an array as a core tensor, of canonical strides.
resfuse::Tensor to_planes(const Array4& array);

// The array as a core tensor; a dense one gets the canonical strides even where a dimension is 1.
resfuse::Tensor to_tensor(const Array4& array);

namespace resfuse {
class WeightSet;
}
resfuse::WeightSet& bound_weights(pybind11::handle object);
