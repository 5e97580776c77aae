#include <algorithm>

#include "plan/algorithm.h"
#include "spec/fields.h"
#include "spec/spec.h"

namespace resfuse {

namespace {

using Writes = Program::Writes;

// Scale and zero point, or null.
Writes read_range(Fields& fields, const char* key) {
    const Json& json = fields[key];
    if (json.is_null()) return {};
    if (!json.is_array() || json.size() != 2) refuse(fields.name(key), "a scale and a zero point");
    return Quantization{read_value<float>(json[0], fields.name(key)), read_value<int>(json[1], fields.name(key))};
}

// Without dilation and ceil_mode where a kind has none. No padding stands for TensorFlow's "same".
Window read_window(Fields& fields, bool dilates, bool pools) {
    const auto kernel = fields.array<index_t, 2>("kernel_size"), stride = fields.array<index_t, 2>("stride");
    const auto dilation = dilates ? fields.array<index_t, 2>("dilation") : std::array<index_t, 2>{1, 1};
    const auto padding = fields.maybe_array<index_t, 4>("padding");
    const auto pad = padding.value_or(std::array<index_t, 4>{});
    return {kernel[0],
            kernel[1],
            stride[0],
            stride[1],
            dilation[0],
            dilation[1],
            pad[0],
            pad[1],
            pad[2],
            pad[3],
            pools && fields.get<bool>("ceil_mode"),
            !padding.has_value()};
}

Place read_place(Fields& fields, const char* key) { return fields.maybe<std::size_t>(key); }

std::optional<BatchNormPlaces> read_batch_norm(Fields& fields) {
    const Json& json = fields["batch_norm"];
    if (json.is_null()) return {};
    Fields norm(json, fields.name("batch_norm"));
    BatchNormPlaces places{read_place(norm, "weight"), read_place(norm, "bias"), norm.get<std::size_t>("running_mean"),
                           norm.get<std::size_t>("running_var"), norm.get<double>("eps")};
    norm.done();
    return places;
}

// Of clamp; null stands for none.
void read_bounds(Fields& fields, Layer& layer) {
    const Json& json = fields["bounds"];
    const std::string what = fields.name("bounds");
    if (!json.is_array() || json.size() != 2) refuse(what, "a lower and an upper bound");
    layer.slope = json[0].is_null() ? -__builtin_inff() : read_value<float>(json[0], what);
    layer.upper = json[1].is_null() ? __builtin_inff() : read_value<float>(json[1], what);
    if (layer.slope == 0.0f && layer.upper == __builtin_inff()) layer.activation = Activation::relu;
}

// What all layers have that compute something.
Layer begin(Fields& fields, const std::string& name, LayerPlaces& places) {
    Layer layer{.kind = LayerKind::conv, .name = name, .input = fields.get<int>("input"), .output = -1, .window = {}};
    layer.activation = parse_activation(fields.get<std::string>("activation"));
    layer.slope = fields.get<float>("slope");
    layer.residual = fields.maybe<int>("residual").value_or(-1);
    // Files of before there were prelu and clamp have no such fields.
    if (fields.has("slopes")) places.slopes = read_place(fields, "slopes");
    if (places.slopes.has_value() != (layer.activation == Activation::prelu))
        refuse(fields.name("slopes"), "the place of a parameter for the activation prelu, null for others");
    const bool clamps = layer.activation == Activation::clamp || layer.activation == Activation::hardtanh;
    if (clamps != (fields.has("bounds") && !fields["bounds"].is_null()))
        refuse(fields.name("bounds"),
               "a lower and an upper bound for the activations clamp and hardtanh, null for others");
    if (clamps) read_bounds(fields, layer);
    return layer;
}

int read_conv(Program& program, Fields& fields, const std::string& name, LayerPlaces& places) {
    Layer layer = begin(fields, name, places);
    layer.window = read_window(fields, true, false);
    layer.out_channels = fields.get<index_t>("out_channels");
    const auto in_channels = fields.get<index_t>("in_channels");
    layer.groups = fields.get<index_t>("groups");
    layer.algorithm = require_algorithm(fields.get<std::string>("algorithm"));
    layer.reads = read_range(fields, "reads");
    places.weight = read_place(fields, "weight");
    places.bias = read_place(fields, "bias");
    places.weight_steps = read_place(fields, "weight_steps");
    places.weight_zeros = read_place(fields, "weight_zeros");
    places.weight_lost = read_place(fields, "weight_lost");
    places.input_means = read_place(fields, "input_means");
    places.channel_scale = read_place(fields, "channel_scale");
    places.batch_norm = read_batch_norm(fields);
    places.factor = fields.get<double>("factor");
    if (!places.weight) refuse(fields.name("weight"), "the place of a parameter");
    const int made = program.add_conv(std::move(layer), read_range(fields, "writes"));
    const index_t found = program.layers().back().in_channels;
    if (in_channels != found)
        throw std::invalid_argument(name + ": in_channels: got " + std::to_string(in_channels) + ", its input has " +
                                    std::to_string(found));
    return made;
}

int read_affine(Program& program, Fields& fields, const std::string& name, LayerPlaces& places) {
    Layer layer = begin(fields, name, places);
    layer.gate = fields.maybe<int>("gate").value_or(-1);
    layer.product = fields.maybe<int>("product").value_or(-1);
    places.channel_scale = read_place(fields, "channel_scale");
    places.batch_norm = read_batch_norm(fields);
    places.factor = fields.get<double>("factor");
    return program.add_affine(std::move(layer), read_range(fields, "writes"));
}

int read_norm(Program& program, Fields& fields, const std::string& name, LayerPlaces& places) {
    Layer layer = begin(fields, name, places);
    layer.eps = fields.get<float>("eps");
    const auto groups = fields.get<index_t>("groups");
    places.weight = read_place(fields, "weight");
    places.bias = read_place(fields, "bias");
    if (groups == 0) return program.add_layer_norm(std::move(layer));
    layer.groups = groups;
    return program.add_group_norm(std::move(layer));
}

int read_resize(Program& program, Fields& fields, const std::string& name) {
    Resize resize{.bilinear = fields.get<bool>("bilinear"), .align_corners = fields.get<bool>("align_corners")};
    const auto size = fields.maybe_array<index_t, 2>("size");
    const auto scale = fields.maybe_array<double, 2>("scale");
    resize.like = fields.maybe<int>("like").value_or(-1);
    if (size) resize.size = {(*size)[0], (*size)[1]};
    if (scale) resize.scale_h = (*scale)[0], resize.scale_w = (*scale)[1];
    return program.add_resize(name, fields.get<int>("input"), resize);
}

int read_layer(Program& program, const std::string& kind, Fields& fields, const std::string& name,
               LayerPlaces& places) {
    if (kind == "conv") return read_conv(program, fields, name, places);
    if (kind == "affine") return read_affine(program, fields, name, places);
    if (kind == "norm") return read_norm(program, fields, name, places);
    if (kind == "resize") return read_resize(program, fields, name);
    const auto input = fields.get<int>("input");
    if (kind == "max_pool") return program.add_max_pool(name, input, read_window(fields, true, true));
    if (kind == "avg_pool") {
        const Window window = read_window(fields, false, true);
        return program.add_avg_pool(name, input, window, fields.get<bool>("count_include_pad"),
                                    read_range(fields, "writes"));
    }
    if (kind == "global_avg_pool") {
        fields.get<bool>("mean");  // of torch's memory format alone
        return program.add_global_avg_pool(name, input, read_range(fields, "writes"));
    }
    if (kind == "slice")
        return program.add_slice(name, input, fields.get<index_t>("first_channel"), fields.get<index_t>("channels"));
    if (kind == "pad") {
        const auto pad = fields.array<index_t, 4>("padding");
        Window window;
        window.pad_top = pad[0], window.pad_left = pad[1], window.pad_bottom = pad[2], window.pad_right = pad[3];
        return program.add_pad(name, input, window);
    }
    if (kind == "depth_to_space") {
        const auto block = fields.array<index_t, 2>("block");
        const auto crop = fields.array<index_t, 4>("crop");
        return program.add_depth_to_space(name, input, {block[0], block[1], crop[0], crop[1], crop[2], crop[3]});
    }
    if (kind == "channel_shuffle") {
        fields.get<bool>("views");  // of torch's memory format alone
        return program.add_channel_shuffle(name, input, fields.get<index_t>("groups"));
    }
    if (kind == "concat") {
        const std::vector<int> parts = fields.list<int>("parts");
        if (parts.empty() || parts.front() != input) refuse(fields.name("parts"), "some, the input being the first");
        return program.add_concat(name, parts);
    }
    throw std::invalid_argument(name + ": got kind '" + kind + "', which no layer is of");
}

std::size_t count(const std::vector<LayerPlaces>& layers) {
    std::size_t most = 0;
    const auto see = [&](const Place& place) {
        if (place) most = std::max(most, *place + 1);
    };
    for (const LayerPlaces& l : layers) {
        for (const Place& place : {l.weight, l.bias, l.weight_steps, l.weight_zeros, l.weight_lost, l.input_means,
                                   l.channel_scale, l.slopes})
            see(place);
        if (!l.batch_norm) continue;
        const BatchNormPlaces& norm = *l.batch_norm;
        for (const Place& place : {norm.weight, norm.bias, Place(norm.running_mean), Place(norm.running_var)})
            see(place);
    }
    return most;
}

}  // namespace

Spec read_spec(std::string_view text, Isa isa, DType type) {
    const Json json = parse_json(text, "program");
    Spec spec{.program = std::make_shared<Program>(isa)};
    Program& program = *spec.program;
    Fields fields(json, "program");
    for (const index_t channels : fields.list<index_t>("inputs")) program.add_input(channels, type);
    const Json& layers = fields["layers"];
    if (!layers.is_array()) refuse("program: layers", "a list");
    for (const Json& item : layers) {
        Fields layer(item, "program: layer " + std::to_string(spec.places.size()));
        const auto name = layer.get<std::string>("name");
        LayerPlaces places;
        const int made = read_layer(program, layer.get<std::string>("kind"), layer, name, places);
        if (const int output = layer.get<int>("output"); made != output)
            throw std::invalid_argument(name + ": output: got " + std::to_string(output) + ", the next buffer is " +
                                        std::to_string(made));
        layer.done();
        spec.places.push_back(places);
    }
    const Json& outputs = fields["outputs"];
    if (!outputs.is_array()) refuse("program: outputs", "a list");
    for (const Json& item : outputs) {
        Fields output(item, "program: output " + std::to_string(spec.ranks.size()));
        program.add_output(output.get<int>("buffer"));
        spec.ranks.push_back(output.get<int>("rank"));
        if (spec.ranks.back() != 2 && spec.ranks.back() != 4) refuse(output.name("rank"), "2 or 4");
        output.done();
    }
    fields.done();
    spec.parameters = count(spec.places);
    return spec;
}

}  // namespace resfuse
