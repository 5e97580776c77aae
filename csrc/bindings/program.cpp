// Building programs and handing them weights.
#include "program/program.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/register.h"
#include "bindings/views.h"
#include "spec/parameters.h"

namespace py = pybind11;
using namespace resfuse;

namespace {

StoredTensor stored(const py::array& array, const std::string& what) {
    // NumPy knows no bf16.
    constexpr std::array<const char*, kStoredTypes> names = {"float32", "float64", "uint16", "float16",
                                                             "int8",    "int32",   "int64"};
    const std::string got = py::str(array.dtype());
    StoredTensor tensor{.data = array.data()};
    const auto found = std::find(names.begin(), names.end(), got);
    if (found == names.end()) throw py::type_error(what + ": got dtype " + got + ", want real numbers or integers");
    tensor.type = static_cast<StoredType>(found - names.begin());
    for (py::ssize_t d = 0; d < array.ndim(); ++d) {
        if (array.strides(d) % stored_bytes(tensor.type) != 0)
            throw py::value_error(what + ": strides must be multiples of the item size");
        tensor.shape.push_back(array.shape(d));
        tensor.strides.push_back(array.strides(d) / stored_bytes(tensor.type));
    }
    return tensor;
}

// A WeightSet and the arrays that it reads.
struct BoundWeights {
    explicit BoundWeights(std::shared_ptr<const Spec> program) : spec(std::move(program)), weights(spec->program) {}

    void set_parameters(std::vector<py::array> arrays) {
        std::vector<StoredTensor> tensors;
        for (const py::array& array : arrays)
            tensors.push_back(stored(array, "parameters[" + std::to_string(tensors.size()) + "]"));
        resfuse::set_parameters(weights, *spec, tensors);
        keep_alive = std::move(arrays);
    }

    void set_first(const py::array& weight, std::vector<double> bias) {
        const Layer& layer = spec->program->layers().at(0);
        const std::array<index_t, 4> want = {layer.out_channels, layer.group_in(), layer.window.kernel_h,
                                             layer.window.kernel_w};
        const Array4 view = array4(weight, layer.name + ": weight");
        if (view.shape != want)
            throw std::invalid_argument(layer.name + ": weight has shape " + shape_text(view.shape) + ", want " +
                                        shape_text(want));
        WeightSource source;
        source.weight = view.floats();
        source.strides = view.strides;
        source.bias = std::move(bias);
        weights.set(0, std::move(source));
        keep_alive = {weight};
    }

    py::tuple int8(std::size_t index, int threads) const {
        const std::vector<Layer>& layers = spec->program->layers();
        if (index >= layers.size() || !layers[index].is_int8())
            throw py::value_error("layer: " + std::to_string(index) + " computes no bytes");
        const Layer& layer = layers[index];
        const Int8Weights made = weights.int8(index, threads);
        const index_t rows = layer.window.kernel_h, cols = layer.window.kernel_w, channels = layer.group_in();
        py::array_t<std::int8_t> integers({layer.out_channels, rows, cols, channels});
        std::copy(made.weights.begin(), made.weights.end(), integers.mutable_data());
        return py::make_tuple(integers,
                              py::array_t<float>(static_cast<py::ssize_t>(made.steps.size()), made.steps.data()),
                              py::array_t<double>(static_cast<py::ssize_t>(made.lost.size()), made.lost.data()));
    }

    std::shared_ptr<const Spec> spec;
    WeightSet weights;
    std::vector<py::array> keep_alive;
};

}  // namespace

WeightSet& bound_weights(py::handle object) { return object.cast<BoundWeights&>().weights; }

void register_program(py::module_& m) {
    py::class_<Spec, std::shared_ptr<Spec>>(m, "Program", "Layers over buffers, without shapes or weights.")
        .def(
            py::init([](const std::string& text, const std::optional<std::string>& isa, const std::string& dtype) {
                return std::make_shared<Spec>(read_spec(text, isa ? parse_isa(*isa) : active_isa(), parse_type(dtype)));
            }),
            py::arg("text"), py::arg("isa") = py::none(), py::arg("dtype") = "fp32")
        .def_property_readonly("isa", [](const Spec& spec) { return std::string(isa_name(spec.program->isa())); })
        .def_property_readonly("layers", [](const Spec& spec) {
            std::vector<std::string> names;
            for (const Layer& layer : spec.program->layers()) names.push_back(layer.name);
            return names;
        });

    py::class_<BoundWeights>(m, "WeightSet", "One version of a program's parameters, packed on demand.")
        .def(py::init([](std::shared_ptr<Spec> program) { return std::make_unique<BoundWeights>(std::move(program)); }),
             py::arg("program"))
        .def("set_parameters", &BoundWeights::set_parameters, py::arg("parameters"),
             "The parameters of all layers, in the places that the program's text names.")
        .def("set_first", &BoundWeights::set_first, py::arg("weight"), py::arg("bias"),
             "Those of a program of one convolution.")
        .def("int8", &BoundWeights::int8, py::arg("layer"), py::arg("threads"),
             "Integers [K, R, S, C], their steps, and what rounding takes from each channel's mean output.")
        .def_property_readonly("packed_bytes", [](const BoundWeights& self) { return self.weights.bytes(); });
}
