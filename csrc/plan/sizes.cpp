#include "plan/sizes.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace resfuse {

namespace {

std::string text(Extent extent) { return std::to_string(extent.h) + " x " + std::to_string(extent.w); }

void require_extent(const Layer& layer, const char* what, Extent got, Extent want) {
    if (got.h != want.h || got.w != want.w)
        throw std::invalid_argument(layer.name + ": the " + what + " is " + text(got) + ", want " + text(want));
}

// Of `size` pixels, as torch computes it.
index_t scaled(const Layer& layer, index_t size, double scale) {
    const double length = std::floor(static_cast<double>(size) * scale);
    if (!(length >= 1 && length < 0x1p31))
        throw std::invalid_argument(layer.name + ": " + std::to_string(size) + " pixels times " +
                                    std::to_string(scale) + " are no image");
    return static_cast<index_t>(length);
}

Extent output_extent(const Layer& layer, Extent in) {
    const Window& w = layer.window;
    switch (layer.kind) {
        case LayerKind::conv:
        case LayerKind::max_pool:
        case LayerKind::avg_pool:
            return window_extent(w, in, layer.name);
        case LayerKind::global_avg_pool:
            return {1, 1};
        case LayerKind::affine:
        case LayerKind::concat:
        case LayerKind::slice:
        case LayerKind::group_norm:
        case LayerKind::layer_norm:
        case LayerKind::channel_shuffle:
            return in;
        case LayerKind::pad: {
            const Extent out{in.h + w.pad_top + w.pad_bottom, in.w + w.pad_left + w.pad_right};
            if (out.h < 1 || out.w < 1)
                throw std::invalid_argument(layer.name + ": padding leaves " + text(out) + " of an image of " +
                                            text(in));
            return out;
        }
        case LayerKind::depth_to_space: {
            const DepthToSpace& b = layer.blocks;
            require_addressable({in.h, b.block_h, in.w, b.block_w}, layer.name + ": output");
            const Extent out{in.h * b.block_h - b.crop_top - b.crop_bottom,
                             in.w * b.block_w - b.crop_left - b.crop_right};
            if (out.h < 1 || out.w < 1)
                throw std::invalid_argument(layer.name + ": cropping leaves " + text(out) + " of an image of " +
                                            text({in.h * b.block_h, in.w * b.block_w}));
            return out;
        }
        case LayerKind::resize:
            break;
    }
    const Resize& r = layer.resize;
    if (r.scale_h == 0.0) return r.size;
    return {scaled(layer, in.h, r.scale_h), scaled(layer, in.w, r.scale_w)};
}

}  // namespace

Sizes infer_sizes(const Program& program, index_t batch, const std::vector<InputShape>& inputs) {
    Sizes sizes{program.layers(), {}};
    for (int b = 0; b < program.buffers(); ++b)
        sizes.buffers.push_back({.channels = program.channels(b), .type = program.type(b)});
    const auto extent = [&](int buffer) -> Extent& { return sizes.buffers[static_cast<std::size_t>(buffer)].extent; };
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const Extent in{inputs[i].height, inputs[i].width};
        const std::string what = "input " + std::to_string(i);
        if (in.h < 1 || in.w < 1) throw std::invalid_argument(what + ": an image of " + text(in) + " has no pixels");
        require_addressable({batch, program.channels(program.inputs()[i]), in.h, in.w}, what);
        extent(program.inputs()[i]) = in;
    }
    for (Layer& layer : sizes.layers) {
        const Extent in = extent(layer.input);
        Window& window = layer.window = resolve_padding(layer.window, in);
        const index_t padded_h = in.h + window.pad_top + window.pad_bottom;
        const index_t padded_w = in.w + window.pad_left + window.pad_right;
        require_addressable({batch, layer.in_channels, padded_h, padded_w}, layer.name + ": padded input");
        // A longer stride leads nowhere else, and a band of one would be too long for an index.
        window.stride_h = std::min(window.stride_h, padded_h);
        window.stride_w = std::min(window.stride_w, padded_w);
        if (layer.resize.like >= 0) layer.resize.size = extent(layer.resize.like);
        const Extent out = output_extent(layer, in);
        for (std::size_t p = 1; p < layer.parts.size(); ++p)
            require_extent(layer, "part of a concatenation", extent(layer.parts[p]), in);
        if (layer.gate >= 0) require_extent(layer, "gate", extent(layer.gate), {1, 1});
        if (layer.product >= 0) require_extent(layer, "product", extent(layer.product), out);
        if (layer.residual >= 0) require_extent(layer, "residual", extent(layer.residual), out);
        require_addressable({batch, layer.out_channels, out.h, out.w}, layer.name + ": output");
        extent(layer.output) = out;
    }
    return sizes;
}

}  // namespace resfuse
