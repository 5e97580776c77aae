// Fuzz target: a Program that computes with bytes gives the same bits at every instruction-set level, by every
// algorithm and with any number of threads: those of the generic level's direct sums.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "bytes.h"
#include "plan/run.h"
#include "weights/weights.h"

namespace {

using namespace resfuse;
using fuzz::Bytes;
using fuzz::Noise;

Quantization make_range(Bytes& bytes) {
    constexpr std::array<int, 4> kUsual = {0, 128, 255, 1};
    const float scale = 0x1p-7f * static_cast<float>(1 + bytes.byte());
    return {scale, bytes.flag() ? kUsual[bytes.byte() % 4] : bytes.byte()};
}

std::optional<Quantization> some_range(Bytes& bytes) {
    if (bytes.byte() % 4 == 0) return {};
    return make_range(bytes);
}

Window make_window(Bytes& bytes) {
    Window w;
    const std::uint8_t kind = bytes.byte() % 8;
    if (kind < 2) return w;  // 1x1
    w.kernel_h = w.kernel_w = 3;
    w.pad_top = w.pad_left = w.pad_bottom = w.pad_right = 1;
    if (kind < 6) return w;
    w.kernel_h = bytes.between(1, 4);
    w.kernel_w = bytes.between(1, 7);
    w.stride_h = bytes.between(1, 3);
    w.stride_w = bytes.between(1, 3);
    w.dilation_h = bytes.between(1, 2);
    w.dilation_w = bytes.between(1, 2);
    w.pad_top = bytes.between(0, 2);
    w.pad_right = bytes.between(0, 2);
    return w;
}

int any_buffer(Bytes& bytes, const Program& program) {
    return static_cast<int>(bytes.between(0, program.buffers() - 1));
}

// One that may be added, or -1.
int any_like(Bytes& bytes, const Program& program, index_t channels) {
    const int first = any_buffer(bytes, program);
    for (int i = 0; i < program.buffers(); ++i) {
        const int buffer = (first + i) % program.buffers();
        if (program.channels(buffer) == channels) return buffer;
    }
    return -1;
}

// Of one of the functions that are the same on every level.
Activation make_activation(Bytes& bytes) { return bytes.flag() ? Activation::relu : Activation::none; }

void add_layer(Bytes& bytes, Program& program, const std::string& algorithm) {
    const int input = any_buffer(bytes, program);
    Layer layer{.kind = LayerKind::conv, .name = "layer", .input = input, .output = -1, .window = {}};
    const bool reads_bytes = program.type(input) == DType::u8;
    const std::uint8_t kind = bytes.byte() % 8;
    if (kind < 5) {
        constexpr std::array<index_t, 8> kChannels = {16, 16, 24, 33, 1, 7, 48, 70};
        layer.window = make_window(bytes);
        layer.out_channels = kChannels[bytes.byte() % 8];
        if (bytes.byte() % 4 == 0) {
            layer.out_channels = program.channels(input);
            constexpr std::array<index_t, 5> kGroups = {1, 2, 4, 8, 16};
            const index_t group = kGroups[bytes.byte() % 5];
            layer.groups = layer.out_channels % group == 0 ? layer.out_channels / group : layer.out_channels;
        }
        layer.activation = make_activation(bytes);
        if (bytes.flag()) layer.residual = any_like(bytes, program, layer.out_channels);
        layer.algorithm = algorithm;
        layer.reads = make_range(bytes);
        program.add_conv(std::move(layer), some_range(bytes));
    } else if (kind == 5) {
        Window window = make_window(bytes);
        if (window.kernel_h < 2) window = {.kernel_h = 2, .kernel_w = 2, .stride_h = 2, .stride_w = 2};
        if (bytes.flag() || window.is_dilated()) {
            program.add_max_pool("layer", input, window);
        } else {
            program.add_avg_pool("layer", input, window, bytes.flag(), reads_bytes ? some_range(bytes) : std::nullopt);
        }
    } else if (kind == 6) {
        program.add_global_avg_pool("layer", input, reads_bytes ? some_range(bytes) : std::nullopt);
    } else {
        if (bytes.byte() % 4 == 0) layer.gate = any_like(bytes, program, program.channels(input));
        if (bytes.flag()) layer.residual = any_like(bytes, program, program.channels(input));
        layer.activation = make_activation(bytes);
        program.add_affine(std::move(layer), make_range(bytes));
    }
}

// Whether a layer of real numbers computes what others may round in another way.
bool is_exact(const Layer& layer) {
    return layer.kind == LayerKind::conv
               ? layer.is_int8()
               : layer.input_type == DType::u8 || layer.type == DType::u8 || layer.kind == LayerKind::max_pool;
}

struct Outcome {
    std::vector<float> values;
    bool exact = true;
};

Outcome compute(const std::uint8_t* data, std::size_t size, Isa isa, const std::string& algorithm, int threads) {
    Bytes bytes(data, size);
    const auto program = std::make_shared<Program>(isa);
    program->add_input(bytes.between(1, 40));
    for (index_t l = bytes.between(1, 5); l > 0; --l) add_layer(bytes, *program, algorithm);
    // Bytes leave no program.
    Layer last{.kind = LayerKind::conv, .name = "last", .input = program->buffers() - 1, .output = -1, .window = {}};
    last.out_channels = 5;
    last.reads = make_range(bytes);
    last.algorithm = algorithm;
    program->add_output(program->add_conv(std::move(last)));
    const index_t height = bytes.between(1, 18), width = bytes.between(1, 40), batch = bytes.between(1, 4);
    const bool dense = bytes.flag();
    const Plan plan(program, batch, {{height, width, dense}}, threads);

    Outcome outcome;
    Noise noise(bytes.byte());
    std::vector<std::vector<float>> weights;
    WeightSet set(program);
    for (std::size_t l = 0; l < plan.layers().size(); ++l) {
        const Layer& layer = plan.layers()[l];
        outcome.exact &= is_exact(layer);
        std::vector<double> scale;
        std::vector<double> bias;
        if (layer.gate < 0 && bytes.flag())
            for (index_t k = 0; k < layer.out_channels; ++k) scale.push_back(1.0 + static_cast<double>(noise.next()));
        if (layer.gate < 0 && bytes.flag())
            for (const float value : noise.take(layer.out_channels)) bias.push_back(static_cast<double>(value));
        const Window& w = layer.window;
        const index_t taps = w.kernel_h * w.kernel_w;
        if (layer.kind == LayerKind::conv) {
            weights.push_back(noise.take(layer.out_channels * layer.group_in() * taps));
            set.set(l, {weights.back().data(), {layer.group_in() * taps, taps, w.kernel_w, 1}, scale, bias});
        } else if (layer.kind == LayerKind::affine) {
            set.set_affine(l, scale, bias);
        }
    }
    const index_t channels = program->channels(0), pixels = height * width;
    const std::vector<float> input = noise.take(batch * pixels * channels);
    auto* const in = reinterpret_cast<std::byte*>(const_cast<float*>(input.data()));
    const Tensor x = dense ? Tensor{in, pixels * channels, width * channels, channels, 1}
                           : Tensor{in, pixels * channels, width, 1, pixels};
    const Extent out = plan.extent(program->outputs()[0]);
    outcome.values.assign(static_cast<std::size_t>(batch * out.h * out.w * 5), -1.0f);
    set.prepare(plan.algorithms(), threads);
    run(plan, set, {x}, {{reinterpret_cast<std::byte*>(outcome.values.data()), out.h * out.w * 5, out.w * 5, 5, 1}});
    return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const Outcome want = compute(data, size, Isa::generic, "direct", 1);
        if (!want.exact) return 0;
        for (const std::string& name : available_isas())
            for (const char* const algorithm : {"auto", "direct", "winograd"}) {
                const Outcome got = compute(data, size, parse_isa(name), algorithm, 2);
                for (std::size_t i = 0; i < want.values.size(); ++i) {
                    if (std::memcmp(&got.values[i], &want.values[i], sizeof(float)) == 0) continue;
                    std::fprintf(stderr, "%s, %s: element %zu is %a, want %a\n", name.c_str(), algorithm, i,
                                 static_cast<double>(got.values[i]), static_cast<double>(want.values[i]));
                    std::abort();
                }
            }
    } catch (const std::invalid_argument&) {  // what building a program or a plan promises to throw
    }
    return 0;
}
