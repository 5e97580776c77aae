// Fuzz target: bytes become a Program of any layers, a Plan and inputs; what the engine computes must be what the
// definition says, or building it must have thrown. Layers, windows, groups, strides of memory, element type, batch,
// threads and instruction set all come from the bytes.
#include "program/program.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>

#include "bytes.h"
#include "elements.h"
#include "plan/run.h"
#include "reference.h"
#include "weights/weights.h"

namespace {

using namespace resfuse;
using fuzz::Bytes;
using fuzz::Elements;
using fuzz::Images;
using fuzz::LayerWeights;
using fuzz::Noise;

constexpr index_t kMostFloats = 1 << 16;    // of a buffer
constexpr double kMostMultiplyAdds = 4e5;   // of a layer
constexpr index_t kMostChannels = 1 << 10;  // of a program that is planned: plans hold as many zeros
constexpr index_t kMostTaps = 1 << 12;      // and an offset per tap

Window make_window(Bytes& bytes) {
    Window w;
    w.kernel_h = bytes.wild(1, 4);
    w.kernel_w = bytes.flag() ? w.kernel_h : bytes.wild(1, 4);
    w.stride_h = bytes.wild(1, 3);
    w.stride_w = bytes.flag() ? w.stride_h : bytes.wild(1, 3);
    if (bytes.flag()) w.dilation_h = w.dilation_w = bytes.wild(1, 2);
    w.same_padding = bytes.byte() % 8 == 0;
    if (!w.same_padding) {
        w.pad_top = bytes.wild(0, 2);
        w.pad_left = bytes.wild(0, 2);
        w.pad_bottom = bytes.flag() ? w.pad_top : bytes.wild(0, 2);
        w.pad_right = bytes.flag() ? w.pad_left : bytes.wild(0, 2);
    }
    w.ceil_mode = bytes.flag();
    return w;
}

// The usual 3x3 windows, of stride 1 and 2, that Winograd kernels compute.
Window make_winograd_window(Bytes& bytes) {
    Window w;
    w.kernel_h = w.kernel_w = 3;
    w.stride_h = w.stride_w = bytes.between(1, 2);
    w.pad_top = w.pad_left = w.pad_bottom = w.pad_right = bytes.between(0, 1);
    return w;
}

// Of leaky ReLUs every second one has slopes by channel, of ReLU6 every second one is another clamp.
Activation any_activation(Bytes& bytes, const Program& program) {
    const auto activation = static_cast<Activation>(bytes.between(0, 12));
    const bool by_channel = activation == Activation::leaky_relu && program.layers().size() % 2 == 1;
    if (activation == Activation::relu6 && program.layers().size() % 2 == 1) return Activation::clamp;
    return by_channel ? Activation::prelu : activation;
}

int any_buffer(Bytes& bytes, const Program& program) { return static_cast<int>(bytes.wild(0, program.buffers() - 1)); }

void add_layer(Bytes& bytes, Program& program) {
    Layer layer{
        .kind = LayerKind::conv, .name = "layer", .input = any_buffer(bytes, program), .output = -1, .window = {}};
    const index_t kind = bytes.between(0, 13);
    if (kind <= 3) {
        layer.window = bytes.flag() ? make_winograd_window(bytes) : make_window(bytes);
        layer.window.ceil_mode = false;
        layer.out_channels = bytes.wild(1, 72);
        if (layer.input >= 0 && layer.input < program.buffers() && bytes.byte() % 4 == 0) {
            layer.groups = bytes.flag() ? program.channels(layer.input) : bytes.wild(1, 8);
            layer.out_channels = std::min<index_t>(program.channels(layer.input), 72);
        }
        layer.activation = any_activation(bytes, program);
        if (bytes.flag()) layer.residual = any_buffer(bytes, program);
        constexpr std::array<const char*, 7> kAlgorithms = {"auto",        "direct",   "winograd", "winograd_f2",
                                                            "winograd_f4", "strassen", "paired"};
        layer.algorithm = kAlgorithms[static_cast<std::size_t>(bytes.between(0, 6))];
        if (layer.algorithm == "strassen" || (layer.algorithm == "paired" && bytes.flag())) {
            layer.window.kernel_h = layer.window.kernel_w = 1;
            layer.window.pad_top = layer.window.pad_left = layer.window.pad_bottom = layer.window.pad_right = 0;
            layer.out_channels = 64;  // so that the layer behind it can be one too
        }
        program.add_conv(std::move(layer));
    } else if (kind == 4) {
        program.add_max_pool("layer", layer.input, make_window(bytes));
    } else if (kind == 5) {
        program.add_avg_pool("layer", layer.input, make_window(bytes), bytes.flag());
    } else if (kind == 6) {
        program.add_global_avg_pool("layer", layer.input);
    } else if (kind == 8) {
        std::vector<int> parts{layer.input};
        for (index_t i = bytes.between(0, 3); i > 0; --i) parts.push_back(any_buffer(bytes, program));
        if (parts.size() > 1) return void(program.add_concat("layer", parts));
        program.add_channel_shuffle("layer", layer.input, bytes.wild(1, 4));
    } else if (kind == 9) {
        program.add_slice("layer", layer.input, bytes.wild(0, 20), bytes.wild(1, 20));
    } else if (kind == 10) {
        Window pads;
        for (index_t* const pad : {&pads.pad_top, &pads.pad_left, &pads.pad_bottom, &pads.pad_right})
            *pad = bytes.byte() % 8 == 0 ? -bytes.between(0, 2) : bytes.wild(0, 3);
        program.add_pad("layer", layer.input, pads);
    } else if (kind == 11 && bytes.flag()) {
        DepthToSpace blocks{.block_h = bytes.between(1, 3), .block_w = bytes.between(1, 3)};
        for (index_t* const crop : {&blocks.crop_top, &blocks.crop_left, &blocks.crop_bottom, &blocks.crop_right})
            *crop = bytes.byte() % 4 == 0 ? bytes.wild(0, 3) : 0;
        program.add_depth_to_space("layer", layer.input, blocks);
    } else if (kind == 11) {
        Resize resize{.bilinear = bytes.flag(), .align_corners = bytes.flag()};
        const index_t how = bytes.between(0, 2);
        if (how == 0) resize.size = {bytes.wild(1, 24), bytes.wild(1, 24)};
        if (how == 1) resize.like = any_buffer(bytes, program);
        if (how == 2) {
            resize.scale_h = static_cast<double>(bytes.wild(1, 12)) / 4.0;
            resize.scale_w = static_cast<double>(bytes.wild(1, 12)) / 4.0;
        }
        program.add_resize("layer", layer.input, resize);
    } else if (kind >= 12) {
        layer.eps = 1e-3f;
        layer.activation = any_activation(bytes, program);
        layer.slope = 0.1f;
        layer.upper = 0.7f;
        if (kind == 12) return void(program.add_layer_norm(std::move(layer)));
        layer.groups = bytes.wild(1, 4);
        if (bytes.flag()) layer.residual = any_buffer(bytes, program);
        program.add_group_norm(std::move(layer));
    } else {
        if (bytes.flag()) layer.gate = any_buffer(bytes, program);
        if (bytes.byte() % 4 == 0) layer.product = any_buffer(bytes, program);
        if (bytes.flag()) layer.residual = any_buffer(bytes, program);
        layer.activation = any_activation(bytes, program);
        layer.slope = 0.1f;
        layer.upper = 0.7f;
        program.add_affine(std::move(layer));
    }
}

// Whether a plan is small enough to be computed by the plain loops.
bool is_small(const Plan& plan) {
    for (const Layer& layer : plan.layers()) {
        const Extent out = plan.extent(layer.output);
        const double floats = static_cast<double>(plan.batch()) * static_cast<double>(out.h) *
                              static_cast<double>(out.w) * static_cast<double>(layer.out_channels);
        const double taps = static_cast<double>(layer.window.kernel_h) * static_cast<double>(layer.window.kernel_w);
        const bool normalises = layer.kind == LayerKind::group_norm || layer.kind == LayerKind::layer_norm;
        const double depth =
            (layer.kind == LayerKind::conv || normalises ? static_cast<double>(layer.in_channels / layer.groups)
                                                         : 1.0) *
            (layer.kind == LayerKind::group_norm ? static_cast<double>(out.h * out.w) : 1.0);
        if (floats > static_cast<double>(kMostFloats) || floats * taps * depth > kMostMultiplyAdds) return false;
    }
    return plan.workspace().bytes < (std::size_t{64} << 20);
}

// An input in memory of its own.
struct Input {
    Elements memory;
    Tensor tensor;
};

Tensor dense_tensor(Elements& memory, const Images& images, DType type) {
    const index_t row = images.width * images.channels;
    return {memory.data(), images.height * row, row, images.channels, 1, type};
}

Tensor planes_tensor(Elements& memory, const Images& images, DType type) {
    const index_t plane = images.height * images.width;
    return {memory.data(), plane * images.channels, images.width, 1, plane, type};
}

// Where channel c of the pixel lies that has so many others before it in all images.
std::size_t in_planes(index_t pixel, index_t c, const Images& images) {
    const index_t plane = images.height * images.width;
    return static_cast<std::size_t>((pixel / plane * images.channels + c) * plane + pixel % plane);
}

// The images become what their elements hold.
Input lay_out(Images& images, bool dense, DType type) {
    Input input{Elements(images.values.size(), type), {}};
    input.tensor = dense ? dense_tensor(input.memory, images, type) : planes_tensor(input.memory, images, type);
    for (std::size_t i = 0; i < images.values.size(); ++i) {
        const index_t place = static_cast<index_t>(i), pixel = place / images.channels;
        const std::size_t at = dense ? i : in_planes(pixel, place % images.channels, images);
        input.memory.set(at, images.values[i]);
        images.values[i] = input.memory.get(at);
    }
    return input;
}

// What may come of rounding each value of up to five layers, beside the largest one.
double tolerance(DType type) { return type == DType::bf16 ? 5e-2 : type == DType::fp16 ? 1e-2 : 1e-3; }

LayerWeights make_weights(const Layer& layer, Noise& noise, Bytes& bytes) {
    LayerWeights weights;
    const auto channels = static_cast<std::size_t>(layer.out_channels);
    if (layer.activation == Activation::prelu)
        for (std::size_t k = 0; k < channels; ++k) weights.slopes.push_back(0.25 * static_cast<double>(noise.next()));
    if (layer.kind == LayerKind::conv) {
        const index_t fan_in = layer.in_channels / layer.groups * layer.window.kernel_h * layer.window.kernel_w;
        weights.weight = noise.take(layer.out_channels * fan_in, 1.0f / std::sqrt(static_cast<float>(fan_in)));
    } else if (!layer.is_scaled() || layer.gate >= 0) {
        return weights;
    }
    if (bytes.flag())
        for (std::size_t k = 0; k < channels; ++k)
            weights.scale.push_back(1.0 + 0.5 * static_cast<double>(noise.next()));
    if (bytes.flag()) weights.bias = noise.take(layer.out_channels);
    return weights;
}

void compute_and_compare(Bytes& bytes, const std::shared_ptr<Program>& program, const Plan& plan,
                         const std::vector<bool>& dense) {
    Noise noise(bytes.byte());
    std::vector<LayerWeights> weights;
    WeightSet set(program);
    for (std::size_t l = 0; l < plan.layers().size(); ++l) {
        const Layer& layer = plan.layers()[l];
        weights.push_back(make_weights(layer, noise, bytes));
        const LayerWeights& w = weights.back();
        const Window& window = layer.window;
        if (!w.slopes.empty()) set.set_slopes(l, w.slopes);
        if (layer.kind == LayerKind::conv)
            set.set(l, {w.weight.data(),
                        {layer.in_channels / layer.groups * window.kernel_h * window.kernel_w,
                         window.kernel_h * window.kernel_w, window.kernel_w, 1},
                        w.scale,
                        {w.bias.begin(), w.bias.end()}});
        else if (layer.is_scaled())
            set.set_affine(l, w.scale, {w.bias.begin(), w.bias.end()});
    }
    std::vector<Images> buffers(static_cast<std::size_t>(program->buffers()));
    std::vector<Input> inputs;
    for (std::size_t i = 0; i < program->inputs().size(); ++i) {
        const int b = program->inputs()[i];
        const Extent extent = plan.extent(b);
        Images& images = buffers[static_cast<std::size_t>(b)];
        images = {plan.batch(), extent.h, extent.w, program->channels(b), {}};
        const std::vector<float> values = noise.take(plan.batch() * extent.h * extent.w * images.channels);
        images.values.assign(values.begin(), values.end());
        inputs.push_back(lay_out(images, dense[i], program->type(b)));
    }
    fuzz::evaluate(plan, weights, buffers);

    std::vector<Tensor> in, out;
    const DType type = program->type(0);
    std::vector<Elements> results;
    for (const Input& input : inputs) in.push_back(input.tensor);
    for (std::size_t o = 0; o < program->outputs().size(); ++o) {
        const Images& images = buffers[static_cast<std::size_t>(program->outputs()[o])];
        results.emplace_back(images.values.size(), type);
        out.push_back(plan.in_planes(o) ? planes_tensor(results.back(), images, type)
                                        : dense_tensor(results.back(), images, type));
    }
    const auto call = [&](const std::vector<Tensor>& to) {
        set.prepare(plan.algorithms(), plan.threads());
        run(plan, set, in, to);
    };
    if (bytes.byte() % 8 == 0) {  // two callers at once, who must get the same bits
        std::vector<Elements> others = results;
        std::vector<Tensor> other = out;
        for (std::size_t o = 0; o < others.size(); ++o) other[o].data = others[o].data();
        std::thread second([&] { call(other); });
        call(out);
        second.join();
        for (std::size_t o = 0; o < results.size(); ++o)
            if (results[o].memory() != others[o].memory()) {
                std::fprintf(stderr, "output %zu: two callers got different numbers\n", o);
                std::abort();
            }
    } else {
        call(out);
    }

    double largest = 1.0;  // errors come from the largest numbers that flow
    for (const Images& images : buffers)
        for (const double value : images.values)
            if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
    for (std::size_t o = 0; o < results.size(); ++o) {
        const Images& want = buffers[static_cast<std::size_t>(program->outputs()[o])];
        for (std::size_t i = 0; i < want.values.size(); ++i) {
            const index_t place = static_cast<index_t>(i);
            const std::size_t at =
                plan.in_planes(o) ? in_planes(place / want.channels, place % want.channels, want) : i;
            const double got = results[o].get(at), exact = want.values[i];
            const bool same_infinity = std::isinf(exact) && got == exact;
            if (same_infinity || (std::isnan(exact) && std::isnan(got)) ||
                std::fabs(got - exact) <= tolerance(type) * largest)
                continue;
            std::fprintf(stderr, "output %zu, element %zu: got %g, want %g\n", o, i, got, exact);
            for (std::size_t l = 0; l < plan.layers().size(); ++l)
                std::fprintf(stderr, "  layer %zu: %s, buffer %d to %d\n", l,
                             plan.algorithms()[l] ? plan.algorithms()[l]->name() : "none", plan.layers()[l].input,
                             plan.layers()[l].output);
            std::abort();
        }
    }
}

void try_program(Bytes& bytes) {
    std::vector<Isa> isas;
    for (const std::string& name : available_isas()) isas.push_back(parse_isa(name));
    constexpr std::array<DType, 4> kTypes = {DType::fp32, DType::bf16, DType::fp16, DType::fp32};
    const std::uint8_t first = bytes.byte();
    const auto program = std::make_shared<Program>(isas[first % isas.size()]);
    const DType type = kTypes[first / isas.size() % kTypes.size()];
    for (index_t i = bytes.between(1, 2); i > 0; --i) program->add_input(bytes.wild(1, 40), type);
    for (index_t l = bytes.between(1, 5); l > 0; --l) add_layer(bytes, *program);
    for (index_t o = bytes.between(0, 1); o > 0; --o) program->add_output(any_buffer(bytes, *program));
    if (std::find(program->outputs().begin(), program->outputs().end(), program->buffers() - 1) ==
        program->outputs().end())
        program->add_output(program->buffers() - 1);
    for (int b = 0; b < program->buffers(); ++b)
        if (program->channels(b) > kMostChannels) return;
    for (const Layer& layer : program->layers())
        if (layer.window.kernel_h * layer.window.kernel_w > kMostTaps) return;

    std::vector<InputShape> shapes;
    std::vector<bool> dense;
    const index_t height = bytes.wild(1, 20), width = bytes.wild(1, 20);
    for (std::size_t i = 0; i < program->inputs().size(); ++i) {
        dense.push_back(bytes.flag());
        shapes.push_back({height, width, dense.back()});
    }
    const index_t batch = bytes.wild(1, 5);
    const int threads = static_cast<int>(bytes.between(1, 3));
    std::vector<std::size_t> planes;
    for (std::size_t o = 0; o < program->outputs().size(); ++o)
        if (bytes.flag()) planes.push_back(o);
    const Plan plan(program, batch, shapes, threads, planes);
    for (const InputShape& shape : shapes)
        if (plan.batch() > 64 || shape.height > 64 || shape.width > 64) return;
    if (is_small(plan)) compute_and_compare(bytes, program, plan, dense);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    try {
        try_program(bytes);
    } catch (const std::invalid_argument&) {  // what building a program or a plan promises to throw
    }
    return 0;
}
