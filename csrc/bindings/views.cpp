#include "bindings/views.h"

#include <stdexcept>

namespace py = pybind11;
using namespace resfuse;

float* vector_data(const py::array& array, index_t size, const std::string& what) {
    if (!py::isinstance<py::array_t<float>>(array))
        throw py::type_error(what + ": got dtype " + std::string(py::str(array.dtype())) + ", want float32");
    if (array.ndim() != 1 || array.shape(0) != size || (size > 1 && array.strides(0) != sizeof(float)))
        throw py::value_error(what + ": want a dense vector of " + std::to_string(size));
    return static_cast<float*>(const_cast<void*>(array.data()));
}

namespace {

// NumPy's names of element types, and their letters: a name is made by Python code, at every question anew.
constexpr std::array<const char*, kDTypes> kNames = {"float32", "float64", "uint16", "float16", "uint8"};
constexpr std::array<char, kDTypes> kLetters = {'f', 'd', 'H', 'e', 'B'};

bool is_of(const py::array& array, DType type) {
    return array.dtype().char_() == kLetters[static_cast<std::size_t>(type)] && array.dtype().byteorder() != '>';
}

}  // namespace

Array4 feature_map(const py::array& array, const std::string& what) {
    for (const DType type : {DType::bf16, DType::fp16})
        if (is_of(array, type)) return array4(array, what, type);
    return array4(array, what, DType::fp32);
}

Array4 array4(const py::array& array, const std::string& what, DType type) {
    if (!is_of(array, type))
        throw py::type_error(what + ": got dtype " + std::string(py::str(array.dtype())) + ", want " +
                             kNames[static_cast<std::size_t>(type)]);
    if (array.ndim() != 4)
        throw py::value_error(what + ": got " + std::to_string(array.ndim()) + " dimensions, want 4 (N, C, H, W)");
    Array4 view{const_cast<void*>(array.data()), {}, {}, type};
    const auto size = static_cast<index_t>(element_bytes(type));
    for (int i = 0; i < 4; ++i) {
        view.shape[static_cast<std::size_t>(i)] = array.shape(i);
        const index_t bytes = array.strides(i);
        if (bytes % size != 0) throw py::value_error(what + ": strides must be multiples of the item size");
        view.strides[static_cast<std::size_t>(i)] = bytes / size;
    }
    return view;
}
