// A gate (Hu et al., 2018, "Squeeze-and-excitation networks": a number for each channel of an image) and the 1x1
// convolution behind it: the gate multiplies the weights instead of the feature map, which is many times as large.
#include <algorithm>
#include <array>

#include "conv/direct/direct.h"
#include "conv/direct/direct_step.h"

namespace resfuse {

namespace {

class GatedStep final : public DirectStep {
  public:
    GatedStep(const StepContext& context, std::size_t gate, std::size_t index)
        : DirectStep(context, index, direct()),
          gate_(context.layers[gate]),
          tiles_(ceil_div(pixels(), units().tile_rows)) {
        // Each task multiplies weights for itself: what another core has just written would come late. So it takes many
        // rows. Where there are too few of them for all threads, these share out the panels.
        constexpr index_t kFewestTiles = 5, kBlocksOfThread = 4, kTilesOfBlock = 14;
        const index_t threads = ceil_div(context.threads, context.images);
        const index_t each = std::clamp<index_t>(tiles_ / threads / kTilesOfBlock, 1, kBlocksOfThread);
        blocks_ = std::clamp<index_t>(threads * each, 1, std::max<index_t>(tiles_ / kFewestTiles, 1));
        panel_chunks_ = std::clamp<index_t>(threads / blocks_, 1, grid_.total);
        most_panels_ = chunk_from(0, grid_.total).size();
        thread_scratch = float_bytes(most_panels_ * panel_floats());
    }

    index_t tasks(int, index_t images) const override { return images * blocks_ * panel_chunks_; }

    void run(int, index_t task, const Wave& wave, void* scratch) const override {
        const index_t block = task / panel_chunks_, tile = units().tile_rows;
        const Range tiles = part(tiles_, block % blocks_, blocks_);
        multiply_rows(block / blocks_, {tiles.begin * tile, std::min(tiles.end * tile, pixels())},
                      part(grid_.total, task % panel_chunks_, panel_chunks_), wave, static_cast<float*>(scratch));
    }

  private:
    index_t panel_floats() const { return reduction() * grid_.tile_cols; }

    void multiply_rows(index_t image, Range rows, Range panels, const Wave& wave, float* gated) const {
        const Tensor &x = wave.tensors[gate_.input], &y = wave.tensors[layer_.output];
        for (index_t p = panels.begin; p < panels.end;) {
            const index_t end = std::min(chunk_from(p, panels.end).end, p + most_panels_);
            for (index_t panel = p; panel < end; ++panel)
                scale_panel(image, panel, wave, gated + (panel - p) * panel_floats());
            GemmArgs g = panel_args({p, end}, segments_, reduction(), wave);
            g.b = gated;
            g.a = x.at(image * x.image + rows.begin * x.pixel);
            g.lda = x.pixel;
            g.rows = rows.size();
            g.c = y.at(image * y.image + rows.begin * y.pixel + grid_.channel(p));
            g.ldc = y.pixel;
            const Residual residual = residual_from(wave, layer_, image * pixels() + rows.begin, grid_.channel(p));
            g.residual = residual.data;
            g.ldr = residual.pixel;
            multiply(g, p, y.type, wave);
            p = end;
        }
    }

    void scale_panel(index_t image, index_t panel, const Wave& wave, float* to) const {
        const Tensor& gate = wave.tensors[gate_.gate];
        const auto* const factors = static_cast<const float*>(gate.at(image * gate.image));
        const float* from = weights(wave) + panel * panel_floats();
        for (index_t k = 0; k < reduction(); ++k, from += grid_.tile_cols, to += grid_.tile_cols)
#pragma omp simd
            for (index_t c = 0; c < grid_.tile_cols; ++c) to[c] = from[c] * factors[k];
    }

    const Layer& gate_;
    const index_t tiles_;       // of rows of an image
    index_t blocks_ = 1;        // of tiles
    index_t panel_chunks_ = 1;  // parts that the panels are cut into
    index_t most_panels_ = 1;   // multiplied at once
    const std::array<index_t, 1> segments_{0};
};

}  // namespace

bool can_take_gate(const StepContext& context, std::size_t gate, std::size_t index) {
    const Layer &before = context.layers[gate], &layer = context.layers[index];
    if (before.kind != LayerKind::affine || before.gate < 0 || before.product >= 0 || before.residual >= 0)
        return false;
    if (before.activation != Activation::none || !layer.window.is_pointwise() || layer.groups != 1) return false;
    const bool fp32 = layer.input_type == DType::fp32 && layer.type == DType::fp32 && !layer.is_int8() &&
                      context.buffer(before.input).type == DType::fp32 &&
                      context.buffer(before.gate).type == DType::fp32;
    const Extent extent = context.buffer(layer.output).extent;
    const bool gains = extent.h * extent.w >= 4 * layer.out_channels;
    return fp32 && gains && context.buffer(before.input).dense && layer.activation != Activation::softmax;
}

std::unique_ptr<Step> make_gated_step(const StepContext& context, std::size_t gate, std::size_t layer) {
    return std::make_unique<GatedStep>(context, gate, layer);
}

}  // namespace resfuse
