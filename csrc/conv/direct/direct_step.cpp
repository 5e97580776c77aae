#include "conv/direct/direct_step.h"

#include <algorithm>

#include "conv/cost.h"
#include "conv/direct/direct.h"
#include "conv/direct/direct_rows_step.h"

namespace resfuse {

namespace {

Operands operands_of(const Layer& layer, const ConvAlgorithm& algorithm) {
    return layer.is_int8() ? Operands::bytes : &algorithm == &direct_pairs() ? Operands::pairs : Operands::floats;
}

index_t bytes_of(Operands operands, const KernelTable& kernels) {
    return operands == Operands::bytes ? kernels.int8.operand_bytes : operands == Operands::pairs ? 2 : 4;
}

Units units_of(Operands operands, const Layer& layer, const KernelTable& kernels) {
    if (operands == Operands::bytes) return kernels.int8.units;
    if (operands == Operands::pairs) return kernels_of(kernels, layer.input_type).pair_units;
    return {.operands = 1, .terms = 1.0, .tile_rows = kernels.tile_rows, .takes_lines = false};
}

// Rows of a dense input of whole units.
bool has_operands_in_place(const StepContext& context, const Layer& layer, Operands operands) {
    const PlannedBuffer& input = context.buffer(layer.input);
    if (!input.dense || operands == Operands::pairs) return input.dense;
    if (operands == Operands::floats) return input.type == DType::fp32;
    const Int8Kernels& int8 = context.kernels().int8;
    return input.type == DType::u8 && int8.operand_bytes == 1 && layer.group_in() % int8.units.operands == 0;
}

}  // namespace

DirectStep::DirectStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm)
    : ConvStep(context, index, algorithm),
      pooled_(context.pooled[index]),
      runs_(runs_of(layer_, context.kernels(), operands_of(layer_, algorithm) == Operands::pairs)),
      operands_(operands_of(layer_, algorithm)),
      operand_bytes_(bytes_of(operands_, context.kernels())),
      units_(units_of(operands_, layer_, context.kernels())),
      in_place_(has_operands_in_place(context, layer_, operands_)) {}

index_t DirectStep::padded_row(index_t operands) const {
    if (operands_ == Operands::floats) return padded_pixel(operands);
    constexpr index_t kQuarterPageBytes = 1024;
    return operands * operand_bytes_ % kQuarterPageBytes == 0 ? operands + kLineBytes / operand_bytes_ : operands;
}

void DirectStep::copy_operands(const Wave& wave, const BandArgs& band) const {
    const ElementKernels& kernels = reads(wave);
    if (operands_ == Operands::floats) return kernels.copy_band(band);
    if (operands_ == Operands::pairs) return kernels.copy_image(band);
    const Int8Kernels& int8 = wave.kernels.int8;
    const bool bytes = wave.tensors[layer_.input].type == DType::u8;
    (bytes ? int8.copy_bytes : int8.copy_floats)({band, *layer_.reads});
}

void DirectStep::gather_rows(const Wave& wave, Range rows, void* to, index_t pitch) const {
    const Tensor& x = wave.tensors[layer_.input];
    if (layer_.window.is_pointwise()) return copy_operands(wave, pixels_copy(x, rows, layer_.in_channels, to, pitch));
    for_each_window(layer_, out_, rows, [&](index_t image, const PixelWindow& window) {
        copy_operands(wave, window_copy(x, image, in_, {0, layer_.in_channels}, window, to, layer_.in_channels));
        to = operand_at(to, pitch);
    });
}

index_t DirectStep::panel_bytes() const { return reduction() * grid_.tile_cols * operand_bytes_; }

Range DirectStep::chunk_from(index_t panel, index_t end) const {
    constexpr index_t kChunkBytes = 384 * 1024;
    const index_t fit = std::max<index_t>(kChunkBytes / panel_bytes(), 1);
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
    g.b = static_cast<const std::byte*>(wave.weights.packed(index_, algorithm_)) + panel * panel_bytes();
    g.cols = grid_.cols(panel, panels.size());
    g.scale = scale(wave, panel * grid_.tile_cols);
    g.bias = bias(wave, panel * grid_.tile_cols);
    g.floor = activation_floor(layer_.activation);
    g.activation = activation(wave, panel * grid_.tile_cols);
    return g;
}

void DirectStep::multiply(const GemmArgs& g, index_t panel, DType type, const Wave& wave) const {
    const ElementKernels& kernels = kernels_of(wave.kernels, type);
    if (!layer_.is_int8()) return operands_ == Operands::pairs ? kernels.pair_gemm(g) : kernels.gemm(g);
    const bool has_offset = layer_.reads->zero_point != wave.kernels.int8.taken_from_operands;
    wave.kernels.int8.gemm(
        {.product = g,
         .offset = has_offset ? wave.weights.direct_offset(index_) + panel * grid_.tile_cols : nullptr,
         .epilogue = int8_epilogue_});
    if (activates_apart(layer_)) kernels.activate({g.activation, g.c, g.rows, g.ldc, g.cols});
}

void DirectStep::softmax(index_t image, const Wave& wave) const {
    const Tensor& y = wave.tensors[layer_.output];
    writes(wave).activate({{Activation::softmax, 0.0f}, y.at(image * y.image), pixels(), y.pixel, layer_.out_channels});
}

std::unique_ptr<Step> make_direct_step(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm) {
    const Layer& layer = context.layers[index];
    const Extent out = context.buffer(layer.output).extent;
    const bool one_group = layer.groups == 1 && context.buffer(layer.input).dense;
    // What products do not read in place is copied.
    const Operands operands = operands_of(layer, algorithm);
    const bool in_place = has_operands_in_place(context, layer, operands);
    const bool flat = layer.window.is_pointwise() && one_group && in_place;
    const bool short_rows =
        !layer.window.is_dilated() && 2 * out.w <= units_of(operands, layer, context.kernels()).tile_rows;
    const bool joined = runs_of(layer, context.kernels(), operands == Operands::pairs).joined;
    const bool gathered = one_group && !joined && (short_rows || layer.window.is_pointwise());
    if (flat || gathered) return make_direct_flat_step(context, index, algorithm, !flat);
    return std::make_unique<DirectRowsStep>(context, index, algorithm);
}

}  // namespace resfuse
