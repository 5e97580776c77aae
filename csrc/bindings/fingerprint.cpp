// Change detection for parameters.
#include "engine/fingerprint.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/register.h"

namespace py = pybind11;
using namespace resfuse;

namespace {

// Pointers only: the caller compares addresses before it asks for a value, and keeps no array alive through this.
class Fingerprint {
  public:
    explicit Fingerprint(const std::vector<py::array>& arrays) {
        for (const py::array& array : arrays) {
            if (!py::isinstance<py::array_t<float>>(array))
                throw py::type_error("arrays: got dtype " + std::string(py::str(array.dtype())) + ", want float32");
            // A view with gaps or overlaps: its first element only.
            const bool dense = array.flags() & (py::array::c_style | py::array::f_style);
            const index_t floats = array.size() == 0 ? 0 : dense ? array.size() : 1;
            arrays_.push_back({static_cast<const float*>(array.data()), floats});
        }
    }
    std::uint64_t value() const { return fingerprint(arrays_); }

  private:
    std::vector<SampledArray> arrays_;
};

}  // namespace

void register_fingerprint(py::module_& m) {
    py::class_<Fingerprint>(m, "Fingerprint", "Hash of a few samples of each of some arrays, which must stay alive.")
        .def(py::init<const std::vector<py::array>&>(), py::arg("arrays"))
        .def("value", &Fingerprint::value);
}
