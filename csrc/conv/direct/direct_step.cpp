#include "conv/direct/direct_step.h"

#include <algorithm>

#include "conv/cost.h"
#include "conv/direct/direct.h"
#include "conv/direct/direct_rows_step.h"

namespace resfuse {

Range DirectStep::chunk_from(index_t panel, index_t end) const {
    constexpr index_t kChunkFloats = 96 * 1024;
    const index_t fit = std::max<index_t>(kChunkFloats / (grid_.reduction * grid_.tile_cols), 1);
    const index_t left = std::min(end, (panel / grid_.per_group + 1) * grid_.per_group) - panel;
    return {panel, panel + ceil_div(left, ceil_div(left, fit))};
}

GemmArgs DirectStep::panel_args(Range panels, std::span<const index_t> segments, index_t segment_length,
                                const Wave& wave) const {
    const index_t panel = panels.begin;
    GemmArgs g{};
    g.segment_offset = segments.data();
    g.segments = static_cast<index_t>(segments.size());
    g.segment_length = segment_length;
    g.chunk = gemm_chunk(wave.kernels);
    g.b = weights(wave) + panel * grid_.reduction * grid_.tile_cols;
    g.cols = grid_.cols(panel, panels.size());
    g.scale = scale(wave, panel * grid_.tile_cols);
    g.bias = bias(wave, panel * grid_.tile_cols);
    g.floor = activation_floor(layer_.activation);
    g.activation = rounded_activation(layer_);
    return g;
}

void DirectStep::multiply(const GemmArgs& g, DType type, const Wave& wave) const {
    const ElementKernels& kernels = kernels_of(wave.kernels, type);
    kernels.gemm(g);
    if (activates_apart(layer_))
        for (index_t i = 0; i < g.rows; ++i)
            kernels.activate({layer_.activation, layer_.slope}, element_at(g.c, i * g.ldc, type), g.cols);
}

void DirectStep::softmax(index_t image, const Wave& wave) const {
    const Tensor& y = wave.tensors[layer_.output];
    for (index_t pixel = 0; pixel < pixels(); ++pixel)
        writes(wave).activate({Activation::softmax, 0.0f}, y.at(image * y.image + pixel * y.pixel),
                              layer_.out_channels);
}

std::unique_ptr<Step> make_direct_step(const StepContext& context, std::size_t index) {
    const Layer& layer = context.layers[index];
    const Extent out = context.buffer(layer.output).extent;
    const bool one_group = layer.groups == 1 && context.buffer(layer.input).dense;
    // Products read fp32: other types are copied.
    const bool flat = layer.window.is_pointwise() && one_group && context.buffer(layer.input).type == DType::fp32;
    const bool short_rows = !layer.window.is_dilated() && 2 * out.w <= context.kernels().tile_rows;
    const bool gathered = one_group && (short_rows || layer.window.is_pointwise());
    if (flat || gathered) return make_direct_flat_step(context, index, !flat);
    return std::make_unique<DirectRowsStep>(context, index, direct());
}

}  // namespace resfuse
