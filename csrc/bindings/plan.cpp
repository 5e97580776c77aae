// Planning a program for one input size and running it.
#include "plan/plan.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <exception>
#include <optional>

#include "bindings/register.h"
#include "bindings/views.h"
#include "plan/run.h"
#include "spec/spec.h"
#include "weights/weights.h"

namespace py = pybind11;
using namespace resfuse;

namespace {

void check_shape(const Array4& array, const Plan& plan, int buffer, const std::string& what) {
    const Extent extent = plan.extent(buffer);
    const std::array<index_t, 4> want = {plan.batch(), plan.program().channels(buffer), extent.h, extent.w};
    if (array.shape != want)
        throw py::value_error(what + ": got shape " + shape_text(array.shape) + ", want " + shape_text(want));
}

// Arguments of a run as the core has them.
struct Operands {
    std::vector<Tensor> in, out;
};

Operands checked_operands(const Plan& plan, const WeightSet& weights, const std::vector<py::array>& inputs,
                          const std::vector<py::array>& outputs) {
    if (&weights.program() != &plan.program()) throw py::value_error("weights: made for another program than the plan");
    const Program& program = plan.program();
    if (inputs.size() != program.inputs().size() || outputs.size() != program.outputs().size())
        throw py::value_error("inputs, outputs: got " + std::to_string(inputs.size()) + " and " +
                              std::to_string(outputs.size()) + " arrays, want " +
                              std::to_string(program.inputs().size()) + " and " +
                              std::to_string(program.outputs().size()));
    Operands operands;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const std::string what = "inputs[" + std::to_string(i) + "]";
        const Array4 array = array4(inputs[i], what, program.type(program.inputs()[i]));
        check_shape(array, plan, program.inputs()[i], what);
        if (plan.input_dense(i) && !is_dense_nhwc(array))
            throw py::value_error(what + ": the plan was made for dense channels_last memory");
        operands.in.push_back(to_tensor(array));
    }
    for (std::size_t o = 0; o < outputs.size(); ++o) {
        const std::string what = "outputs[" + std::to_string(o) + "]";
        const Array4 array = array4(outputs[o], what, program.type(program.outputs()[o]));
        check_shape(array, plan, program.outputs()[o], what);
        const bool fits = plan.in_planes(o) ? is_dense_nchw(array) : is_dense_nhwc(array);
        if (!fits || !outputs[o].writeable())
            throw py::value_error(what + ": want writable, " +
                                  (plan.in_planes(o) ? "contiguous" : "dense channels_last") + " memory");
        operands.out.push_back(plan.in_planes(o) ? to_planes(array) : to_tensor(array));
    }
    return operands;
}

// Returns the seconds of each layer where `profile` asks for them; layout changes count to the first layer.
std::vector<double> run_plan(const Plan& plan, py::handle weights_object, const std::vector<py::array>& inputs,
                             const std::vector<py::array>& outputs, bool profile) {
    WeightSet& weights = bound_weights(weights_object);
    const auto [in, out] = checked_operands(plan, weights, inputs, outputs);
    const py::gil_scoped_release release;
    weights.prepare(plan.algorithms(), plan.threads());
    std::vector<double> seconds;
    run(plan, weights, in, out, profile ? &seconds : nullptr);
    const std::size_t layouts = profile ? seconds.size() - plan.layers().size() : 0;
    for (std::size_t s = 0; s < layouts; ++s) seconds[layouts] += seconds[s];
    seconds.erase(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(layouts));
    return seconds;
}

// Runs the plan while `are_current` is asked about the weights; false where the outputs are not to be used. Only the
// calling thread holds Python's lock, and only while it asks.
bool run_if(const Plan& plan, py::handle weights_object, const std::vector<py::array>& inputs,
            const std::vector<py::array>& outputs, const py::function& are_current) {
    WeightSet& weights = bound_weights(weights_object);
    const auto [in, out] = checked_operands(plan, weights, inputs, outputs);
    if (!weights.is_prepared(plan.algorithms())) return false;
    std::exception_ptr error;
    std::optional<py::gil_scoped_release> release;
    const bool done = run(plan, weights, in, out, nullptr, [&] {
        bool current = false;
        try {
            current = are_current().cast<bool>();
        } catch (...) {  // none may leave a parallel region
            error = std::current_exception();
        }
        release.emplace();
        return current;
    });
    release.reset();
    if (error) std::rethrow_exception(error);
    return done;
}

// A row a task: layer (-1: a change of layout), first image, stage, task, seconds.
py::array_t<double> task_times(const Plan& plan, py::handle weights_object, const std::vector<py::array>& inputs,
                               const std::vector<py::array>& outputs) {
    WeightSet& weights = bound_weights(weights_object);
    const auto [in, out] = checked_operands(plan, weights, inputs, outputs);
    std::vector<TaskTime> tasks;
    {
        const py::gil_scoped_release release;
        weights.prepare(plan.algorithms(), plan.threads());
        tasks = time_tasks(plan, weights, in, out);
    }
    py::array_t<double> rows({static_cast<py::ssize_t>(tasks.size()), py::ssize_t{5}});
    auto row = rows.mutable_unchecked<2>();
    const auto layouts = static_cast<double>(plan.steps().size() - plan.layers().size());
    for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
        const TaskTime& t = tasks[static_cast<std::size_t>(i)];
        row(i, 0) = std::max(static_cast<double>(t.step) - layouts, -1.0);
        row(i, 1) = static_cast<double>(t.first_image);
        row(i, 2) = static_cast<double>(t.stage);
        row(i, 3) = static_cast<double>(t.task);
        row(i, 4) = t.seconds;
    }
    return rows;
}

py::list describe_layers(const Plan& plan) {
    py::list rows;
    for (std::size_t l = 0; l < plan.layers().size(); ++l) {
        const Layer& layer = plan.layers()[l];
        const Extent out = plan.extent(layer.output);
        py::dict row;
        row["name"] = layer.name;
        row["images_per_wave"] = plan.wave_images(l);
        row["output"] = py::make_tuple(layer.out_channels, out.h, out.w);
        const bool conv = layer.kind == LayerKind::conv;
        const int computed_in = plan.computed_in(l);
        row["algorithm"] = computed_in >= 0 ? "in " + plan.layers()[static_cast<std::size_t>(computed_in)].name
                           : conv           ? plan.algorithms()[l]->name()
                           : layer.kind == LayerKind::max_pool        ? "max_pool"
                           : layer.kind == LayerKind::avg_pool        ? "avg_pool"
                           : layer.kind == LayerKind::affine          ? "elementwise"
                           : layer.kind == LayerKind::concat          ? "concat"
                           : layer.kind == LayerKind::slice           ? "slice"
                           : layer.kind == LayerKind::pad             ? "pad"
                           : layer.kind == LayerKind::resize          ? "resize"
                           : layer.kind == LayerKind::depth_to_space  ? "depth_to_space"
                           : layer.kind == LayerKind::channel_shuffle ? "channel_shuffle"
                           : layer.kind == LayerKind::group_norm      ? "group_norm"
                           : layer.kind == LayerKind::layer_norm      ? "layer_norm"
                                                                      : "global_avg_pool";
        row["packed_bytes"] = conv ? plan.algorithms()[l]->packed_bytes(layer, plan.program().kernels()) : 0;
        row["multiply_adds"] = conv ? plan.batch() * out.h * out.w * layer.out_channels * layer.window.kernel_h *
                                          layer.window.kernel_w * layer.group_in()
                                    : 0;
        row["estimated_cycles"] =
            conv ? plan.algorithms()[l]->cycles(
                       {layer, out, plan.batch(), plan.stream_bytes_per_cycle(), plan.program().kernels()}) /
                       plan.threads()
                 : 0.0;
        rows.append(row);
    }
    return rows;
}

py::list describe_buffers(const Plan& plan) {
    py::list rows;
    for (std::size_t b = 0; b < plan.buffers().size(); ++b) {
        const PlannedBuffer& buffer = plan.buffers()[b];
        const Lifetime& life = plan.lifetimes()[b];
        py::dict row;
        row["shape"] = py::make_tuple(buffer.channels, buffer.extent.h, buffer.extent.w);
        row["dtype"] = type_name(buffer.type);
        row["external"] = buffer.is_external();
        row["view_of"] = buffer.view_of;
        row["image_bytes"] = buffer.image_bytes();
        row["whole_batch"] = buffer.whole_batch;
        row["offset"] = buffer.offset;
        row["steps"] = life.is_used() ? py::object(py::make_tuple(life.first, life.last)) : py::object(py::none());
        rows.append(row);
    }
    return rows;
}

py::list describe_segments(const Plan& plan) {
    py::list rows;
    for (const Segment& segment : plan.segments())
        rows.append(py::make_tuple(segment.first_step, segment.last_step, segment.images));
    return rows;
}

}  // namespace

void register_plan(py::module_& m) {
    m.def(
        "algorithms",
        [] {
            std::vector<std::string> names;
            for (const ConvAlgorithm* const algorithm : conv_algorithms()) names.push_back(algorithm->name());
            return names;
        },
        "The algorithms for convolutions.");
    py::class_<Plan>(m, "Plan", "A program made ready for one batch and image size.")
        .def(py::init([](const std::shared_ptr<Spec>& program, index_t batch,
                         const std::vector<std::tuple<index_t, index_t, bool>>& inputs, int threads,
                         const std::vector<std::size_t>& planes) {
                 std::vector<InputShape> shapes;
                 for (const auto& [h, w, dense] : inputs) shapes.push_back({h, w, dense});
                 return std::make_unique<Plan>(program->program, batch, shapes, threads, planes);
             }),
             py::arg("program"), py::arg("batch"), py::arg("inputs"), py::arg("threads"),
             py::arg("planes") = std::vector<std::size_t>{})
        .def(
            "output_shape",
            [](const Plan& plan, std::size_t output) {
                const int buffer = plan.program().outputs().at(output);
                const Extent extent = plan.extent(buffer);
                return py::make_tuple(plan.batch(), plan.program().channels(buffer), extent.h, extent.w);
            },
            py::arg("output"))
        .def(
            "prepare",
            [](const Plan& plan, py::handle weights) {
                WeightSet& set = bound_weights(weights);
                const py::gil_scoped_release release;
                set.prepare(plan.algorithms(), plan.threads());
            },
            py::arg("weights"), "Packs the weights that this plan needs; idempotent.")
        .def("run", &run_plan, py::arg("weights"), py::arg("inputs"), py::arg("outputs"), py::arg("profile") = false)
        .def("run_if", &run_if, py::arg("weights"), py::arg("inputs"), py::arg("outputs"), py::arg("are_current"),
             "Runs with weights that were prepared for this plan, while it asks `are_current` if they are as they are "
             "to be; returns the answer. Where that is no, or they were not prepared, the outputs are without a "
             "meaning.")
        .def("task_times", &task_times, py::arg("weights"), py::arg("inputs"), py::arg("outputs"),
             "Plays the plan's threads one after the other; a row for each task: layer (-1: a change of layout), first "
             "image of the wave, stage, task, seconds. The outputs are without a meaning then.")
        .def("layers", &describe_layers, "What each layer does under this plan.")
        .def("buffers", &describe_buffers, "Size, place and lifetime of each buffer.")
        .def("segments", &describe_segments, "(first step, last step, images a wave) of each segment.")
        .def_property_readonly("threads", &Plan::threads)
        .def_property_readonly("workspace_bytes", [](const Plan& plan) { return plan.workspace().bytes; });
}
