#include "plan/sizes.h"

#include <algorithm>
#include <stdexcept>

namespace resfuse {

namespace {

std::string text(Extent extent) { return std::to_string(extent.h) + " x " + std::to_string(extent.w); }

void require_extent(const Layer& layer, const char* what, Extent got, Extent want) {
    if (got.h != want.h || got.w != want.w)
        throw std::invalid_argument(layer.name + ": the " + what + " is " + text(got) + ", want " + text(want));
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
        const Extent out =
            layer.kind == LayerKind::global_avg_pool ? Extent{1, 1} : window_extent(layer.window, in, layer.name);
        if (layer.gate >= 0) require_extent(layer, "gate", extent(layer.gate), {1, 1});
        if (layer.residual >= 0) require_extent(layer, "residual", extent(layer.residual), out);
        require_addressable({batch, layer.out_channels, out.h, out.w}, layer.name + ": output");
        extent(layer.output) = out;
    }
    return sizes;
}

}  // namespace resfuse
