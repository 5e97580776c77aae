// What training needs beside programs: batch normalisation with batch statistics, gradients of convolutions and
// max-pooling, and memory for what lives between forward and backward.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/register.h"
#include "bindings/views.h"
#include "conv/gradients/input_gradient.h"
#include "conv/gradients/weight_gradient.h"
#include "memory/heap.h"
#include "norm/batch_norm.h"
#include "plan/algorithm.h"
#include "pool/max_pool_training.h"

namespace py = pybind11;
using namespace resfuse;

namespace {

using Isa_ = std::optional<std::string>;
using MaybeArray = std::optional<py::array>;

const KernelTable& kernels_by_name(const Isa_& isa) { return kernels_of(isa ? parse_isa(*isa) : active_isa()); }

// Dense channels_last feature maps.
struct FeatureMaps {
    void* data;
    Pixels pixels;
};
FeatureMaps feature_maps(const py::array& array, const std::string& what) {
    const Array4 view = feature_map(array, what);
    if (!is_dense_nhwc(view)) throw py::value_error(what + ": want dense channels_last memory");
    if (view.shape[0] * view.shape[2] * view.shape[3] == 0) throw py::value_error(what + ": has no pixels");
    return {view.data, {view.shape[0] * view.shape[2] * view.shape[3], view.shape[1], view.type}};
}

// Others of the same size and type.
void* same_maps(const py::array& array, Pixels want, const std::string& what) {
    const auto [data, got] = feature_maps(array, what);
    if (got.rows != want.rows || got.channels != want.channels)
        throw py::value_error(what + ": has another size than x");
    if (got.type != want.type)
        throw py::type_error(what + ": is of " + type_name(got.type) + ", x is of " + type_name(want.type));
    return data;
}

void* same_maps(const MaybeArray& array, Pixels want, const std::string& what) {
    return array ? same_maps(*array, want, what) : nullptr;
}

float* maybe_vector(const MaybeArray& array, index_t size, const std::string& what) {
    return array ? vector_data(*array, size, what) : nullptr;
}

void norm_statistics_of(const py::array& x, const py::array& mean, const py::array& variance, int threads,
                        const Isa_& isa) {
    const auto [data, pixels] = feature_maps(x, "x");
    float* const m = vector_data(mean, pixels.channels, "mean");
    float* const v = vector_data(variance, pixels.channels, "variance");
    const py::gil_scoped_release release;
    norm_statistics(kernels_by_name(isa), data, pixels, m, v, threads);
}

void norm_forward_of(const py::array& x, const MaybeArray& residual, const py::array& mean, const py::array& scale,
                     const py::array& bias, bool relu, const py::array& y, int threads, const Isa_& isa) {
    const auto [data, pixels] = feature_maps(x, "x");
    const void* const r = same_maps(residual, pixels, "residual");
    const float* const m = vector_data(mean, pixels.channels, "mean");
    const float* const s = vector_data(scale, pixels.channels, "scale");
    const float* const b = vector_data(bias, pixels.channels, "bias");
    void* const out = same_maps(y, pixels, "y");
    const py::gil_scoped_release release;
    norm_forward(kernels_by_name(isa), data, r, pixels, m, s, b, relu, out, threads);
}

void norm_backward_of(const py::array& grad, const MaybeArray& y, const MaybeArray& scale, const MaybeArray& bias,
                      const py::array& x, const py::array& mean, const py::array& inverse_deviation,
                      const MaybeArray& weight, bool batch_statistics, const py::array& dx, const MaybeArray& dresidual,
                      const MaybeArray& dweight, const MaybeArray& dbias, int threads, const Isa_& isa) {
    const auto [data, pixels] = feature_maps(x, "x");
    const NormBackward g{.grad = same_maps(grad, pixels, "grad"),
                         .y = same_maps(y, pixels, "y"),
                         .scale = maybe_vector(scale, pixels.channels, "scale"),
                         .bias = maybe_vector(bias, pixels.channels, "bias"),
                         .x = data,
                         .mean = vector_data(mean, pixels.channels, "mean"),
                         .inverse_deviation = vector_data(inverse_deviation, pixels.channels, "inverse_deviation"),
                         .weight = maybe_vector(weight, pixels.channels, "weight"),
                         .batch_statistics = batch_statistics,
                         .dx = same_maps(dx, pixels, "dx"),
                         .dresidual = same_maps(dresidual, pixels, "dresidual"),
                         .dweight = maybe_vector(dweight, pixels.channels, "dweight"),
                         .dbias = maybe_vector(dbias, pixels.channels, "dbias")};
    const py::gil_scoped_release release;
    norm_backward(kernels_by_name(isa), g, pixels, threads);
}

// A convolution's layer and sizes from its tensors; they must fit each other.
struct Shapes {
    Layer layer;
    Extent in, out;
    index_t batch;
};

Window window_of(const std::array<index_t, 2>& kernel, const std::array<index_t, 2>& stride,
                 const std::array<index_t, 2>& dilation, const std::array<index_t, 4>& padding) {
    return {.kernel_h = kernel[0],
            .kernel_w = kernel[1],
            .stride_h = stride[0],
            .stride_w = stride[1],
            .dilation_h = dilation[0],
            .dilation_w = dilation[1],
            .pad_top = padding[0],
            .pad_left = padding[1],
            .pad_bottom = padding[2],
            .pad_right = padding[3]};
}

Shapes shapes_of(const std::string& what, const Array4& x, const Array4& grad, const Array4& weight,
                 const std::array<index_t, 2>& stride, const std::array<index_t, 2>& dilation,
                 const std::array<index_t, 4>& padding, const std::string& algorithm) {
    Shapes s{.layer = {.kind = LayerKind::conv, .name = what, .input = 0, .output = 1, .window = {}},
             .in = {x.shape[2], x.shape[3]},
             .out = {grad.shape[2], grad.shape[3]},
             .batch = x.shape[0]};
    s.layer.in_channels = x.shape[1];
    s.layer.out_channels = grad.shape[1];
    s.layer.algorithm = require_algorithm(algorithm);
    s.layer.window = window_of({weight.shape[2], weight.shape[3]}, stride, dilation, padding);
    const Extent expected = window_extent(s.layer.window, s.in, what);
    if (weight.shape[0] != grad.shape[1] || weight.shape[1] != x.shape[1] || grad.shape[0] != x.shape[0] ||
        expected.h != s.out.h || expected.w != s.out.w || x.shape[0] == 0)
        throw py::value_error(what + ": got input " + shape_text(x.shape) + ", output " + shape_text(grad.shape) +
                              " and weight " + shape_text(weight.shape) + ", which are of no one convolution");
    if (!is_dense_nhwc(x) || !is_dense_nhwc(grad)) throw py::value_error(what + ": want dense channels_last memory");
    if (x.type != grad.type) throw py::type_error(what + ": input and output are of different types");
    return s;
}

void weight_gradient_of(const py::array& x, const py::array& grad, const py::array& dw,
                        const std::array<index_t, 2>& stride, const std::array<index_t, 2>& dilation,
                        const std::array<index_t, 4>& padding, const std::string& algorithm, int threads,
                        const Isa_& isa) {
    const Array4 in = feature_map(x, "x"), out = feature_map(grad, "grad"), weight = array4(dw, "dw");
    const Shapes s = shapes_of("weight_gradient", in, out, weight, stride, dilation, padding, algorithm);
    const WeightGradient g{.layer = s.layer,
                           .in = s.in,
                           .out = s.out,
                           .batch = s.batch,
                           .x = to_tensor(in),
                           .grad = to_tensor(out),
                           .dw = weight.floats(),
                           .dw_strides = weight.strides};
    const py::gil_scoped_release release;
    weight_gradient(kernels_by_name(isa), g, threads);
}

void input_gradient_of(const py::array& grad, const py::array& weight, const py::array& dx, bool accumulate,
                       const std::array<index_t, 2>& stride, const std::array<index_t, 4>& padding, int threads,
                       const Isa_& isa) {
    const Array4 in = feature_map(dx, "dx"), out = feature_map(grad, "grad"), w = array4(weight, "weight");
    const Shapes s = shapes_of("input_gradient", in, out, w, stride, {1, 1}, padding, "direct");
    const InputGradient g{.layer = s.layer,
                          .in = s.in,
                          .out = s.out,
                          .batch = s.batch,
                          .weight = w.floats(),
                          .strides = w.strides,
                          .grad = to_tensor(out),
                          .dx = to_tensor(in),
                          .accumulate = accumulate};
    const py::gil_scoped_release release;
    input_gradient(kernels_by_name(isa), g, threads);
}

// The taps of a max-pool's maxima, dense NHWC.
std::uint8_t* taps_data(const py::array& taps, const Array4& like) {
    if (!py::isinstance<py::array_t<std::uint8_t>>(taps) ||
        taps.size() != like.shape[0] * like.shape[1] * like.shape[2] * like.shape[3])
        throw py::type_error("taps: want a dense uint8 array of the output's size");
    return static_cast<std::uint8_t*>(const_cast<void*>(taps.data()));
}

PoolShape pool_shape(const Array4& x, const Array4& y, const std::array<index_t, 2>& kernel,
                     const std::array<index_t, 2>& stride, const std::array<index_t, 4>& padding, bool ceil_mode) {
    PoolShape s{.window = window_of(kernel, stride, {1, 1}, padding),
                .in = {x.shape[2], x.shape[3]},
                .out = {y.shape[2], y.shape[3]},
                .batch = x.shape[0],
                .channels = x.shape[1],
                .type = x.type};
    s.window.ceil_mode = ceil_mode;
    check_pool_window(s.window, "max_pool");
    const Extent expected = window_extent(s.window, s.in, "max_pool");
    if (y.shape[0] != s.batch || y.shape[1] != s.channels || expected.h != s.out.h || expected.w != s.out.w)
        throw py::value_error("max_pool: got input " + shape_text(x.shape) + " and output " + shape_text(y.shape) +
                              ", which do not fit the window");
    if (kernel[0] > 8 || kernel[1] > 8) throw py::value_error("max_pool: want a kernel of at most 8 x 8");
    if (!is_dense_nhwc(x) || !is_dense_nhwc(y)) throw py::value_error("max_pool: want dense channels_last memory");
    if (x.type != y.type) throw py::type_error("max_pool: input and output are of different types");
    return s;
}

using Pair = std::array<index_t, 2>;
using Four = std::array<index_t, 4>;

void max_pool_forward_of(const py::array& x, const py::array& y, const py::array& taps, const Pair& kernel,
                         const Pair& stride, const Four& padding, bool ceil_mode, int threads, const Isa_& isa) {
    const Array4 in = feature_map(x, "x"), out = feature_map(y, "y");
    const PoolShape shape = pool_shape(in, out, kernel, stride, padding, ceil_mode);
    std::uint8_t* const to = taps_data(taps, out);
    const py::gil_scoped_release release;
    max_pool_forward(kernels_by_name(isa), shape, in.data, out.data, to, threads);
}

void max_pool_backward_of(const py::array& grad, const py::array& taps, const py::array& dx, const Pair& kernel,
                          const Pair& stride, const Four& padding, bool ceil_mode, int threads, const Isa_& isa) {
    const Array4 in = feature_map(dx, "dx"), out = feature_map(grad, "grad");
    const PoolShape shape = pool_shape(in, out, kernel, stride, padding, ceil_mode);
    const std::uint8_t* const from = taps_data(taps, out);
    const py::gil_scoped_release release;
    max_pool_backward(kernels_by_name(isa), shape, out.data, from, in.data, threads);
}

// An uninitialised [N, C, H, W] array in channels_last memory that goes back to the heap when nobody holds it.
py::array empty(const Four& shape, index_t item_bytes) {
    const auto [n, c, h, w] = shape;
    if (std::min({n, c, h, w}) < 0) throw py::value_error("shape: got " + shape_text(shape));
    if (item_bytes != 2 && item_bytes != 4)
        throw py::value_error("item_bytes: got " + std::to_string(item_bytes) + ", want 2 or 4");
    void* const data = Heap::global().take(static_cast<std::size_t>(n * c * h * w * item_bytes));
    const py::capsule owner(data, [](void* block) { Heap::global().give_back(block); });
    const Four strides = {h * w * c * item_bytes, item_bytes, w * c * item_bytes, c * item_bytes};
    return py::array(py::dtype(item_bytes == 4 ? "f4" : "i2"), shape, strides, data, owner);
}

}  // namespace

void register_training(py::module_& m) {
    m.def("norm_statistics", &norm_statistics_of, py::arg("x"), py::arg("mean"), py::arg("variance"),
          py::arg("threads"), py::arg("isa") = py::none(), "Mean and biased variance of every channel of x.");
    m.def("norm_forward", &norm_forward_of, py::arg("x"), py::arg("residual"), py::arg("mean"), py::arg("scale"),
          py::arg("bias"), py::arg("relu"), py::arg("y"), py::arg("threads"), py::arg("isa") = py::none(),
          "y = (x - mean) * scale + bias + residual, with ReLU where asked for.");
    m.def("norm_backward", &norm_backward_of, py::arg("grad"), py::arg("y"), py::arg("scale"), py::arg("bias"),
          py::arg("x"), py::arg("mean"), py::arg("inverse_deviation"), py::arg("weight"), py::arg("batch_statistics"),
          py::arg("dx"), py::arg("dresidual"), py::arg("dweight"), py::arg("dbias"), py::arg("threads"),
          py::arg("isa") = py::none(), "Gradients of batch normalisation, the residual sum and ReLU.");
    m.def("weight_gradient", &weight_gradient_of, py::arg("x"), py::arg("grad"), py::arg("dw"), py::arg("stride"),
          py::arg("dilation"), py::arg("padding"), py::arg("algorithm"), py::arg("threads"),
          py::arg("isa") = py::none(), "Writes the gradient of a convolution's weights to dw.");
    m.def("input_gradient", &input_gradient_of, py::arg("grad"), py::arg("weight"), py::arg("dx"),
          py::arg("accumulate"), py::arg("stride"), py::arg("padding"), py::arg("threads"), py::arg("isa") = py::none(),
          "Writes (or adds) the gradient of a strided convolution's input to dx.");
    m.def("max_pool_forward", &max_pool_forward_of, py::arg("x"), py::arg("y"), py::arg("taps"), py::arg("kernel_size"),
          py::arg("stride"), py::arg("padding"), py::arg("ceil_mode"), py::arg("threads"), py::arg("isa") = py::none(),
          "Writes the maxima to y and which tap each was to taps.");
    m.def("max_pool_backward", &max_pool_backward_of, py::arg("grad"), py::arg("taps"), py::arg("dx"),
          py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("ceil_mode"), py::arg("threads"),
          py::arg("isa") = py::none(), "Writes the gradient of the pool's input to dx.");
    m.def("empty", &empty, py::arg("shape"), py::arg("item_bytes") = 4,
          "An uninitialised [N, C, H, W] array of float32, or of int16 for items of 2 bytes, in channels_last memory, "
          "from "
          "memory that is mapped already.");
}
