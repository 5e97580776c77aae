#include "program/program.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace resfuse {

namespace {

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

// Windows and images within it have products that an index holds.
constexpr index_t kMostLength = 0x7fffffff;
constexpr index_t kMostChannels = index_t{1} << 24;
// Sums of so many products of bytes hold in 31 bits.
constexpr index_t kMostInt8Products = kMostLength / (255 * 128);

void check_window(const Window& w, const std::string& layer) {
    require(w.kernel_h > 0 && w.kernel_w > 0, layer + ": kernel_size must be positive");
    require(w.stride_h > 0 && w.stride_w > 0, layer + ": stride must be positive");
    require(w.dilation_h > 0 && w.dilation_w > 0, layer + ": dilation must be positive");
    require(w.pad_top >= 0 && w.pad_left >= 0 && w.pad_bottom >= 0 && w.pad_right >= 0,
            layer + ": padding must not be negative");
    for (const index_t length : {w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w, w.pad_top,
                                 w.pad_left, w.pad_bottom, w.pad_right})
        require(length <= kMostLength, layer + ": got a window with " + std::to_string(length) + ", want at most " +
                                           std::to_string(kMostLength));
}

index_t window_length(index_t in, index_t kernel, index_t stride, index_t dilation, index_t before, index_t after,
                      bool ceil_mode, const std::string& layer) {
    const index_t span = in + before + after - (dilation * (kernel - 1) + 1);
    require(in > 0 && span >= 0, layer + ": an image side of " + std::to_string(in) + " with padding " +
                                     std::to_string(before) + " and " + std::to_string(after) +
                                     " is smaller than the kernel " + std::to_string(kernel) + " (dilation " +
                                     std::to_string(dilation) + ")");
    index_t out = span / stride + 1;
    // A window that starts in the padding behind the image does not count (as in torch).
    if (ceil_mode && span % stride != 0 && out * stride < in + before) ++out;
    return out;
}

}  // namespace

void require_addressable(std::initializer_list<index_t> shape, const std::string& what) {
    constexpr double kMostFloats = 0x1p45;  // 2^47 bytes, what a process can address
    double floats = 1;
    std::string text;
    for (const index_t length : shape) {
        floats *= static_cast<double>(length);
        text += (text.empty() ? "" : " x ") + std::to_string(length);
    }
    require(floats <= kMostFloats, what + ": " + text + " is more than memory can hold");
}

Activation parse_activation(const std::string& name) {
    constexpr std::array<const char*, 16> names = {"none", "relu",       "tanh",  "sigmoid",     "softmax",   "silu",
                                                   "gelu", "leaky_relu", "relu6", "hardsigmoid", "hardswish", "mish",
                                                   "elu",  "prelu",      "clamp", "hardtanh"};
    std::string wanted;
    for (std::size_t i = 0; i < names.size(); ++i) {
        if (name == names[i]) return static_cast<Activation>(i);
        wanted += std::string(i == 0 ? "'" : ", '") + names[i] + "'";
    }
    throw std::invalid_argument("activation: got '" + name + "', want one of " + wanted);
}

void check_pool_window(const Window& window, const std::string& layer) {
    check_window(window, layer);
    require(2 * std::max(window.pad_top, window.pad_bottom) <= window.dilation_h * (window.kernel_h - 1) + 1 &&
                2 * std::max(window.pad_left, window.pad_right) <= window.dilation_w * (window.kernel_w - 1) + 1,
            layer + ": padding must be at most half the kernel");
}

std::vector<int> Layer::sources() const {
    std::vector<int> found = kind == LayerKind::concat ? parts : std::vector<int>{input};
    for (const int buffer : {residual, gate, product})
        if (buffer >= 0) found.push_back(buffer);
    return found;
}

Window resolve_padding(Window w, Extent in) {
    if (!w.same_padding) return w;
    const auto total = [](index_t size, index_t kernel, index_t stride, index_t dilation) {
        const index_t out = (size + stride - 1) / stride;
        return std::max<index_t>((out - 1) * stride + dilation * (kernel - 1) + 1 - size, 0);
    };
    const index_t h = total(in.h, w.kernel_h, w.stride_h, w.dilation_h);
    const index_t wd = total(in.w, w.kernel_w, w.stride_w, w.dilation_w);
    w.pad_top = h / 2;
    w.pad_bottom = h - h / 2;
    w.pad_left = wd / 2;
    w.pad_right = wd - wd / 2;
    return w;
}

Extent window_extent(const Window& w, Extent in, const std::string& layer) {
    return {window_length(in.h, w.kernel_h, w.stride_h, w.dilation_h, w.pad_top, w.pad_bottom, w.ceil_mode, layer),
            window_length(in.w, w.kernel_w, w.stride_w, w.dilation_w, w.pad_left, w.pad_right, w.ceil_mode, layer)};
}

void Program::check_buffer(int buffer, const std::string& what) const {
    require(buffer >= 0 && buffer < buffers(),
            what + ": got buffer " + std::to_string(buffer) + ", want 0 to " + std::to_string(buffers() - 1));
}

void Program::check_operand(const Layer& layer, int buffer, const char* what) const {
    if (buffer < 0) return;
    check_buffer(buffer, layer.name + ": " + what);
    require(channels(buffer) == layer.out_channels, layer.name + ": " + what + " has " +
                                                        std::to_string(channels(buffer)) + " channels, want " +
                                                        std::to_string(layer.out_channels));
    // Layers that compute with bytes, or write them, add both.
    const DType got = type(buffer), input = type(layer.input);
    const bool mixes = layer.is_int8() || input == DType::u8 || layer.type == DType::u8 ||
                       (layer.kind == LayerKind::affine && got == DType::u8);
    const bool takes_bytes = mixes && buffer != layer.gate;
    const bool fits = got == (mixes ? DType::fp32 : input) || (takes_bytes && got == DType::u8);
    require(fits, layer.name + ": " + what + " is of type " + type_name(got) + ", want " +
                      (takes_bytes ? "u8 or fp32" : type_name(mixes ? DType::fp32 : input)));
}

int Program::add_buffer(index_t channels, DType type, const Writes& range) {
    require(!frozen_, "program: cannot grow once it has a plan or weights");
    require(computes(kernels(), type), std::string("dtype: got '") + type_name(type) +
                                           "', which programs do not compute at the level " + isa_name(isa_));
    buffers_.push_back({channels, type, range});
    return buffers() - 1;
}

int Program::add_input(index_t channels, DType type) {
    require(channels > 0 && channels <= kMostChannels,
            "channels: got " + std::to_string(channels) + ", want 1 to " + std::to_string(kMostChannels));
    require(type != DType::u8, "dtype: got 'u8', inputs are real numbers");
    inputs_.push_back(add_buffer(channels, type));
    return inputs_.back();
}

namespace {

void check_range(const Quantization& range, const std::string& what) {
    require(std::isfinite(range.scale) && range.scale >= std::numeric_limits<float>::min() &&
                std::isfinite(1.0f / range.scale),
            what + ": got a scale of " + std::to_string(range.scale) + ", want a positive, normal number");
    require(range.zero_point >= 0 && range.zero_point <= 255,
            what + ": got a zero point of " + std::to_string(range.zero_point) + ", want 0 to 255");
}

}  // namespace

int Program::add_layer(Layer layer, const Writes& writes) {
    if (writes) {
        require(
            type(layer.input) == DType::u8 || type(layer.input) == DType::fp32,
            layer.name + ": an output of bytes wants an input of type u8 or fp32, got " + type_name(type(layer.input)));
        require(layer.activation != Activation::softmax, layer.name + ": softmax gives no bytes");
        require(layer.activation != Activation::prelu, layer.name + ": prelu gives real numbers, no bytes");
        check_range(*writes, layer.name + ": output");
    }
    layer.input_type = type(layer.input);
    layer.output = add_buffer(layer.out_channels, layer.type, writes);
    layers_.push_back(std::move(layer));
    return layers_.back().output;
}

int Program::add_conv(Layer layer, const Writes& writes) {
    const std::string& name = layer.name;
    layer.kind = LayerKind::conv;
    check_buffer(layer.input, name + ": input");
    check_window(layer.window, name);
    layer.in_channels = channels(layer.input);
    require(layer.out_channels > 0, name + ": out_channels must be positive");
    require_addressable({layer.out_channels, layer.in_channels, layer.window.kernel_h, layer.window.kernel_w},
                        name + ": weight");
    require(layer.groups > 0 && layer.in_channels % layer.groups == 0 && layer.out_channels % layer.groups == 0,
            name + ": groups = " + std::to_string(layer.groups) + " must divide " + std::to_string(layer.in_channels) +
                " input and " + std::to_string(layer.out_channels) + " output channels");
    if (type(layer.input) == DType::u8) layer.reads = range(layer.input);
    if (layer.reads) {
        require(type(layer.input) == DType::u8 || type(layer.input) == DType::fp32,
                name + ": bytes are made of fp32, got an input of type " + type_name(type(layer.input)));
        check_range(*layer.reads, name + ": input");
        const index_t products = layer.window.kernel_h * layer.window.kernel_w * layer.group_in();
        require(products <= kMostInt8Products, name + ": sums of " + std::to_string(products) +
                                                   " products of bytes, want at most " +
                                                   std::to_string(kMostInt8Products));
    }
    require(!writes || layer.reads, name + ": only a convolution that reads bytes writes them");
    layer.type = writes ? DType::u8 : layer.reads ? DType::fp32 : type(layer.input);
    check_operand(layer, layer.residual, "residual");
    require(layer.activation != Activation::softmax || layer.groups == 1,
            name + ": softmax cannot follow a convolution in groups");
    return add_layer(std::move(layer), writes);
}

int Program::add_pool(LayerKind kind, const std::string& name, int input, const Window& window, bool counts_padding,
                      const Writes& writes) {
    check_buffer(input, name + ": input");
    check_pool_window(window, name);
    Layer layer{.kind = kind, .name = name, .input = input, .output = -1, .window = window};
    layer.counts_padding = counts_padding;
    layer.in_channels = layer.out_channels = channels(input);
    layer.type = output_type(input, writes);
    return add_layer(std::move(layer), writes);
}

DType Program::output_type(int input, const Writes& writes) const {
    return writes ? DType::u8 : type(input) == DType::u8 ? DType::fp32 : type(input);
}

int Program::add_max_pool(const std::string& name, int input, const Window& window) {
    check_buffer(input, name + ": input");
    const Writes writes = type(input) == DType::u8 ? Writes(range(input)) : Writes();
    return add_pool(LayerKind::max_pool, name, input, window, false, writes);
}

int Program::add_avg_pool(const std::string& name, int input, const Window& window, bool counts_padding,
                          const Writes& writes) {
    require(!window.is_dilated(), name + ": average pools have no dilation");
    check_buffer(input, name + ": input");
    require(!writes || type(input) == DType::u8, name + ": only an average pool that reads bytes writes them");
    return add_pool(LayerKind::avg_pool, name, input, window, counts_padding, writes);
}

int Program::add_global_avg_pool(const std::string& name, int input, const Writes& writes) {
    check_buffer(input, name + ": input");
    require(!writes || type(input) == DType::u8, name + ": only a global average pool that reads bytes writes them");
    Layer layer{.kind = LayerKind::global_avg_pool, .name = name, .input = input, .output = -1, .window = {}};
    layer.in_channels = layer.out_channels = channels(input);
    layer.type = output_type(input, writes);
    return add_layer(std::move(layer), writes);
}

int Program::add_affine(Layer layer, const Writes& writes) {
    const std::string& name = layer.name;
    layer.kind = LayerKind::affine;
    check_buffer(layer.input, name + ": input");
    layer.in_channels = layer.out_channels = channels(layer.input);
    layer.type = output_type(layer.input, writes);
    check_operand(layer, layer.residual, "residual");
    check_operand(layer, layer.gate, "gate");
    check_operand(layer, layer.product, "product");
    if (layer.product >= 0)
        for (const DType found :
             {type(layer.input), layer.type, layer.residual < 0 ? layer.type : type(layer.residual)})
            require(found != DType::u8, name + ": products of two feature maps are of real numbers, got u8");
    require(layer.activation != Activation::softmax, name + ": softmax is no function of single elements");
    return add_layer(std::move(layer), writes);
}

Layer Program::moving(LayerKind kind, const std::string& name, int input) const {
    check_buffer(input, name + ": input");
    require(type(input) != DType::u8, name + ": wants an input of real numbers, got u8");
    Layer layer{.kind = kind, .name = name, .input = input, .output = -1, .window = {}};
    layer.in_channels = layer.out_channels = channels(input);
    layer.type = type(input);
    return layer;
}

int Program::add_concat(const std::string& name, const std::vector<int>& parts) {
    require(!parts.empty(), name + ": parts: got none, want at least one");
    Layer layer = moving(LayerKind::concat, name, parts.front());
    layer.out_channels = 0;
    for (const int part : parts) {
        const Layer other = moving(LayerKind::concat, name, part);
        require(other.type == layer.type,
                name + ": parts: got " + type_name(layer.type) + " and " + type_name(other.type) + ", want one type");
        layer.out_channels += other.in_channels;
    }
    require(layer.out_channels <= kMostChannels,
            name + ": its parts have more than " + std::to_string(kMostChannels) + " channels together");
    layer.parts = parts;
    return add_layer(std::move(layer), {});
}

int Program::add_slice(const std::string& name, int input, index_t first_channel, index_t channels) {
    Layer layer = moving(LayerKind::slice, name, input);
    require(first_channel >= 0 && channels > 0 && channels <= layer.in_channels &&
                first_channel <= layer.in_channels - channels,
            name + ": got " + std::to_string(channels) + " channels from " + std::to_string(first_channel) +
                " on, want some of " + std::to_string(layer.in_channels));
    layer.first_channel = first_channel;
    layer.out_channels = channels;
    return add_layer(std::move(layer), {});
}

namespace {

Layer normalising(Layer layer, const Layer& like) {
    require(std::isfinite(layer.eps) && layer.eps >= 0.0f,
            layer.name + ": eps: got " + std::to_string(layer.eps) + ", want a number that is not negative");
    require(layer.activation != Activation::softmax, layer.name + ": softmax cannot follow a normalisation");
    layer.kind = like.kind;
    layer.in_channels = layer.out_channels = like.in_channels;
    layer.type = like.type;
    return layer;
}

}  // namespace

int Program::add_group_norm(Layer layer) {
    layer = normalising(layer, moving(LayerKind::group_norm, layer.name, layer.input));
    require(layer.groups > 0 && layer.in_channels % layer.groups == 0,
            layer.name + ": groups = " + std::to_string(layer.groups) + " must divide " +
                std::to_string(layer.in_channels) + " channels");
    check_operand(layer, layer.residual, "residual");
    return add_layer(std::move(layer), {});
}

int Program::add_layer_norm(Layer layer) {
    layer = normalising(layer, moving(LayerKind::layer_norm, layer.name, layer.input));
    require(layer.residual < 0, layer.name + ": a layer norm adds no residual");
    return add_layer(std::move(layer), {});
}

int Program::add_pad(const std::string& name, int input, const Window& pads) {
    Layer layer = moving(LayerKind::pad, name, input);
    for (const index_t pad : {pads.pad_top, pads.pad_left, pads.pad_bottom, pads.pad_right})
        require(-kMostLength <= pad && pad <= kMostLength,
                name + ": padding: got " + std::to_string(pad) + ", want a number of 31 bits");
    layer.window.pad_top = pads.pad_top;
    layer.window.pad_left = pads.pad_left;
    layer.window.pad_bottom = pads.pad_bottom;
    layer.window.pad_right = pads.pad_right;
    return add_layer(std::move(layer), {});
}

int Program::add_depth_to_space(const std::string& name, int input, const DepthToSpace& blocks) {
    Layer layer = moving(LayerKind::depth_to_space, name, input);
    for (const index_t length : {blocks.block_h, blocks.block_w})
        require(0 < length && length <= kMostLength,
                name + ": block: got " + std::to_string(length) + ", want a positive number of 31 bits");
    for (const index_t length : {blocks.crop_top, blocks.crop_left, blocks.crop_bottom, blocks.crop_right})
        require(0 <= length && length <= kMostLength,
                name + ": crop: got " + std::to_string(length) + ", want a number of 31 bits, not below 0");
    const index_t pixels = blocks.block_h * blocks.block_w;
    require(layer.in_channels % pixels == 0, name + ": block: " + std::to_string(blocks.block_h) + " x " +
                                                 std::to_string(blocks.block_w) + " pixels must divide " +
                                                 std::to_string(layer.in_channels) + " channels");
    layer.out_channels = layer.in_channels / pixels;
    layer.blocks = blocks;
    return add_layer(std::move(layer), {});
}

int Program::add_channel_shuffle(const std::string& name, int input, index_t groups) {
    Layer layer = moving(LayerKind::channel_shuffle, name, input);
    require(groups > 0 && layer.in_channels % groups == 0, name + ": groups = " + std::to_string(groups) +
                                                               " must divide " + std::to_string(layer.in_channels) +
                                                               " channels");
    layer.groups = groups;
    return add_layer(std::move(layer), {});
}

int Program::add_resize(const std::string& name, int input, const Resize& resize) {
    Layer layer = moving(LayerKind::resize, name, input);
    const bool scaled = resize.scale_h != 0.0 || resize.scale_w != 0.0;
    for (const double scale : {resize.scale_h, resize.scale_w})
        require(!scaled || (std::isfinite(scale) && scale > 0.0 && std::isfinite(1.0 / scale)),
                name + ": scale: got " + std::to_string(scale) + ", want a positive number");
    if (resize.like >= 0) check_buffer(resize.like, name + ": like");
    for (const index_t length : {resize.size.h, resize.size.w})
        require(scaled || resize.like >= 0 || (length > 0 && length <= kMostLength),
                name + ": size: got " + std::to_string(length) + ", want a positive number of 31 bits");
    layer.resize = resize;
    return add_layer(std::move(layer), {});
}

void Program::add_output(int buffer) {
    require(!frozen_, "program: cannot grow once it has a plan or weights");
    check_buffer(buffer, "output");
    require(std::find(inputs_.begin(), inputs_.end(), buffer) == inputs_.end(), "output: an input cannot be an output");
    require(std::find(outputs_.begin(), outputs_.end(), buffer) == outputs_.end(), "output: named twice");
    require(type(buffer) != DType::u8, "output: bytes leave no program");
    outputs_.push_back(buffer);
}

}  // namespace resfuse
