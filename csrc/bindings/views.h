// NumPy arrays as plain pointers and strides; every check of outside memory is made here, once.
#pragma once

#include <pybind11/numpy.h>

#include <string>

#include "plan/array4.h"

// The floats of a dense one-dimensional float32 array of `size`; throws TypeError or ValueError that names `what`.
float* vector_data(const pybind11::array& array, resfuse::index_t size, const std::string& what);

// An array of four dimensions, of float32, float16, or for bf16, which NumPy does not know, uint16. Throws TypeError or
// ValueError that names `what`.
resfuse::Array4 array4(const pybind11::array& array, const std::string& what,
                       resfuse::DType type = resfuse::DType::fp32);

// The same of an array of any of these types.
resfuse::Array4 feature_map(const pybind11::array& array, const std::string& what);

namespace resfuse {
class WeightSet;
}
resfuse::WeightSet& bound_weights(pybind11::handle object);
