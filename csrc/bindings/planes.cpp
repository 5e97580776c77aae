// Feature maps in contiguous memory.
#include "layout/planes.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/register.h"
#include "bindings/views.h"

namespace py = pybind11;
using namespace resfuse;

namespace {

void copy(const py::array& x, const py::array& y, int threads, const std::optional<std::string>& isa) {
    const Array4 from = array4(x, "x"), to = array4(y, "y");
    const auto [n, c, h, w] = from.shape;
    if (to.shape != from.shape)
        throw py::value_error("y: got shape " + shape_text(to.shape) + ", want " + shape_text(from.shape));
    if (!is_dense_nhwc(from)) throw py::value_error("x: want dense channels_last memory");
    if (!is_dense_nchw(to) || !y.writeable()) throw py::value_error("y: want writable, contiguous memory");
    const KernelTable& kernels = kernels_of(isa ? parse_isa(*isa) : active_isa());
    const py::gil_scoped_release release;
    copy_to_planes(kernels, from.floats(), n, c, h * w, to.floats(), threads);
}

}  // namespace

void register_planes(py::module_& m) {
    m.def("copy_to_planes", &copy, py::arg("x"), py::arg("y"), py::arg("threads"), py::arg("isa") = py::none(),
          "Copies an image in channels_last memory to one of the same shape in contiguous memory.");
}
