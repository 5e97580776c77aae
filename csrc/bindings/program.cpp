// Building programs and handing them weights.
#include "program/program.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/register.h"
#include "bindings/views.h"
#include "weights/weights.h"

namespace py = pybind11;
using namespace resfuse;

namespace {

using Pair = std::array<index_t, 2>;
using ByteRange = std::optional<std::pair<float, int>>;  // scale and zero point

std::optional<Quantization> quantization(const ByteRange& range) {
    if (!range) return {};
    return Quantization{range->first, range->second};
}

// No padding stands for TensorFlow's "same".
Window make_window(Pair kernel_size, Pair stride, Pair dilation, const std::optional<std::array<index_t, 4>>& padding,
                   bool ceil_mode) {
    const std::array<index_t, 4> pad = padding.value_or(std::array<index_t, 4>{});
    return {kernel_size[0], kernel_size[1], stride[0], stride[1], dilation[0], dilation[1],
            pad[0],         pad[1],         pad[2],    pad[3],    ceil_mode,   !padding.has_value()};
}

int add_conv(Program& program, const std::string& name, int input, index_t out_channels, Pair kernel_size, Pair stride,
             Pair dilation, const std::optional<std::array<index_t, 4>>& padding, index_t groups,
             const std::string& activation, int residual, const std::string& algorithm, const ByteRange& reads,
             const ByteRange& writes, float slope) {
    Layer layer{.kind = LayerKind::conv, .name = name, .input = input, .output = -1, .window = {}};
    layer.residual = residual;
    layer.window = make_window(kernel_size, stride, dilation, padding, false);
    layer.out_channels = out_channels;
    layer.groups = groups;
    layer.activation = parse_activation(activation);
    layer.slope = slope;
    layer.algorithm = require_algorithm(algorithm);
    layer.reads = quantization(reads);
    return program.add_conv(std::move(layer), quantization(writes));
}

// A WeightSet and the arrays that it reads.
struct BoundWeights {
    explicit BoundWeights(std::shared_ptr<const Program> program) : weights(std::move(program)) {}

    void set(std::size_t layer, const py::array& weight, std::vector<double> scale, std::vector<float> bias,
             std::vector<float> steps, std::vector<float> means) {
        if (layer >= weights.program().layers().size())
            throw std::invalid_argument("layer: got " + std::to_string(layer) + ", want less than " +
                                        std::to_string(weights.program().layers().size()));
        const Layer& l = weights.program().layers()[layer];
        const std::array<index_t, 4> want = {l.out_channels, l.group_in(), l.window.kernel_h, l.window.kernel_w};
        const Array4 view = array4(weight, l.name + ": weight");
        if (view.shape != want)
            throw std::invalid_argument(l.name + ": weight has shape " + shape_text(view.shape) + ", want " +
                                        shape_text(want));
        weights.set(layer, {view.floats(), view.strides, std::move(scale), std::move(bias), std::move(steps),
                            std::move(means)});
        keep_alive[layer] = weight;
    }

    void set_affine(std::size_t layer, const std::vector<double>& scale, const std::vector<float>& bias) {
        weights.set_affine(layer, scale, bias);
    }

    WeightSet weights;
    std::map<std::size_t, py::array> keep_alive;
};

}  // namespace

WeightSet& bound_weights(py::handle object) { return object.cast<BoundWeights&>().weights; }

void register_program(py::module_& m) {
    py::class_<Program, std::shared_ptr<Program>>(m, "Program", "Layers over buffers, without shapes or weights.")
        .def(py::init([](const std::optional<std::string>& isa) {
                 return std::make_shared<Program>(isa ? parse_isa(*isa) : active_isa());
             }),
             py::arg("isa") = py::none())
        .def(
            "add_input",
            [](Program& program, index_t channels, const std::string& dtype) {
                return program.add_input(channels, parse_type(dtype));
            },
            py::arg("channels"), py::arg("dtype") = "fp32")
        .def("add_conv", &add_conv, py::arg("name"), py::arg("input"), py::arg("out_channels"), py::arg("kernel_size"),
             py::arg("stride"), py::arg("dilation"), py::arg("padding"), py::arg("groups"), py::arg("activation"),
             py::arg("residual"), py::arg("algorithm"), py::arg("reads") = py::none(), py::arg("writes") = py::none(),
             py::arg("slope") = 0.0f)
        .def(
            "add_max_pool",
            [](Program& program, const std::string& name, int input, Pair kernel_size, Pair stride, Pair dilation,
               const std::optional<std::array<index_t, 4>>& padding, bool ceil_mode) {
                return program.add_max_pool(name, input,
                                            make_window(kernel_size, stride, dilation, padding, ceil_mode));
            },
            py::arg("name"), py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("dilation"),
            py::arg("padding"), py::arg("ceil_mode"))
        .def(
            "add_avg_pool",
            [](Program& program, const std::string& name, int input, Pair kernel_size, Pair stride,
               const std::optional<std::array<index_t, 4>>& padding, bool ceil_mode, bool count_include_pad,
               const ByteRange& writes) {
                return program.add_avg_pool(name, input, make_window(kernel_size, stride, {1, 1}, padding, ceil_mode),
                                            count_include_pad, quantization(writes));
            },
            py::arg("name"), py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
            py::arg("ceil_mode"), py::arg("count_include_pad"), py::arg("writes") = py::none())
        .def(
            "add_global_avg_pool",
            [](Program& program, const std::string& name, int input, const ByteRange& writes) {
                return program.add_global_avg_pool(name, input, quantization(writes));
            },
            py::arg("name"), py::arg("input"), py::arg("writes") = py::none())
        .def(
            "add_affine",
            [](Program& program, const std::string& name, int input, int gate, int residual,
               const std::string& activation, float slope, const ByteRange& writes, int product) {
                Layer layer{.kind = LayerKind::affine, .name = name, .input = input, .output = -1, .window = {}};
                layer.gate = gate;
                layer.product = product;
                layer.residual = residual;
                layer.activation = parse_activation(activation);
                layer.slope = slope;
                return program.add_affine(std::move(layer), quantization(writes));
            },
            py::arg("name"), py::arg("input"), py::arg("gate"), py::arg("residual"), py::arg("activation"),
            py::arg("slope"), py::arg("writes") = py::none(), py::arg("product") = -1)
        .def(
            "add_norm",
            [](Program& program, const std::string& name, int input, index_t groups, float eps, int residual,
               const std::string& activation, float slope) {
                Layer layer{.kind = LayerKind::group_norm, .name = name, .input = input, .output = -1, .window = {}};
                layer.residual = residual;
                layer.activation = parse_activation(activation);
                layer.slope = slope;
                layer.eps = eps;
                layer.groups = std::max<index_t>(groups, 1);
                return groups > 0 ? program.add_group_norm(std::move(layer)) : program.add_layer_norm(std::move(layer));
            },
            py::arg("name"), py::arg("input"), py::arg("groups"), py::arg("eps"), py::arg("residual"),
            py::arg("activation"), py::arg("slope"))
        .def("add_concat", &Program::add_concat, py::arg("name"), py::arg("parts"))
        .def("add_slice", &Program::add_slice, py::arg("name"), py::arg("input"), py::arg("first_channel"),
             py::arg("channels"))
        .def(
            "add_pad",
            [](Program& program, const std::string& name, int input, std::array<index_t, 4> padding) {
                return program.add_pad(name, input, make_window({1, 1}, {1, 1}, {1, 1}, padding, false));
            },
            py::arg("name"), py::arg("input"), py::arg("padding"))
        .def(
            "add_resize",
            [](Program& program, const std::string& name, int input, bool bilinear, bool align_corners,
               const std::optional<Pair>& size, const std::optional<std::array<double, 2>>& scale, int like) {
                Resize resize{.bilinear = bilinear, .align_corners = align_corners};
                resize.like = like;
                if (size) resize.size = {(*size)[0], (*size)[1]};
                if (scale) resize.scale_h = (*scale)[0], resize.scale_w = (*scale)[1];
                return program.add_resize(name, input, resize);
            },
            py::arg("name"), py::arg("input"), py::arg("bilinear"), py::arg("align_corners"), py::arg("size"),
            py::arg("scale"), py::arg("like") = -1)
        .def("add_output", &Program::add_output, py::arg("buffer"))
        .def_property_readonly("isa", [](const Program& program) { return std::string(isa_name(program.isa())); })
        .def_property_readonly("layers", [](const Program& program) {
            std::vector<std::string> names;
            for (const Layer& layer : program.layers()) names.push_back(layer.name);
            return names;
        });

    py::class_<BoundWeights>(m, "WeightSet", "One version of a program's parameters, packed on demand.")
        .def(py::init(
                 [](std::shared_ptr<Program> program) { return std::make_unique<BoundWeights>(std::move(program)); }),
             py::arg("program"))
        .def("set", &BoundWeights::set, py::arg("layer"), py::arg("weight"), py::arg("scale"), py::arg("bias"),
             py::arg("steps") = std::vector<float>{}, py::arg("means") = std::vector<float>{})
        .def("set_affine", &BoundWeights::set_affine, py::arg("layer"), py::arg("scale"), py::arg("bias"))
        .def_property_readonly("packed_bytes", [](const BoundWeights& self) { return self.weights.bytes(); });
}
