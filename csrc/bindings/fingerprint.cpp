// Change detection for parameters.
#include "memory/fingerprint.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/register.h"

namespace py = pybind11;
using namespace resfuse;

namespace {

// Pointers only: the caller compares addresses before it asks, and keeps no array alive through this.
std::vector<WatchedArray> watched(const std::vector<py::array>& arrays) {
    std::vector<WatchedArray> list;
    for (const py::array& array : arrays) {
        if (!py::isinstance<py::array_t<float>>(array))
            throw py::type_error("arrays: got dtype " + std::string(py::str(array.dtype())) + ", want float32");
        if (array.ndim() > 4)
            throw py::value_error("arrays: got " + std::to_string(array.ndim()) + " dimensions, want 4 at most");
        WatchedArray item{static_cast<const float*>(array.data()), {1, 1, 1, 1}, {0, 0, 0, 0}};
        for (py::ssize_t d = 0; d < array.ndim(); ++d) {
            const auto place = static_cast<std::size_t>(4 - array.ndim() + d);
            item.shape[place] = array.shape(d);
            item.strides[place] = array.strides(d) / static_cast<index_t>(sizeof(float));
        }
        list.push_back(item);
    }
    return list;
}

}  // namespace

void register_fingerprint(py::module_& m) {
    py::class_<Fingerprint>(m, "Fingerprint", "Hashes of some arrays, which must stay alive.")
        .def(py::init(
                 [](const std::vector<py::array>& arrays) { return std::make_unique<Fingerprint>(watched(arrays)); }),
             py::arg("arrays"))
        .def("take", &Fingerprint::take, py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
             "Hashes all bytes as they are now.")
        .def("samples", &Fingerprint::samples, "A hash of a few values of each array.")
        // With the lock held: meanwhile no other Python thread can free what is read.
        .def("same_slice", &Fingerprint::same_slice, py::arg("threads"),
             "Whether the next of the slices, in turn, is as it was when the hashes were taken.")
        .def_property_readonly("slices", &Fingerprint::slices);
}
