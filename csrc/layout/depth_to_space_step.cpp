// Channels that become pixels, as a step of a plan: what a transposed convolution's products are written to.
#include "plan/image_step.h"

namespace resfuse {

namespace {

class DepthToSpaceStep final : public ImageStep {
  public:
    DepthToSpaceStep(const StepContext& context, const Layer& layer)
        : ImageStep(context, layer.input, layer.output, context.buffer(layer.output).extent.h),
          blocks_(layer.blocks),
          channels_(layer.out_channels) {}

  private:
    void run_part(index_t image, Range rows, const Wave& wave, void*) const override {
        for (index_t row = rows.begin; row < rows.end; ++row) {
            const index_t from = (row + blocks_.crop_top) / blocks_.block_h;
            const index_t phase_h = (row + blocks_.crop_top) % blocks_.block_h;
            for (index_t phase_w = 0; phase_w < blocks_.block_w; ++phase_w)
                copy_phase(image, row, from, phase_h * blocks_.block_w + phase_w, phase_w, wave);
        }
    }

    // Every `block_w` th pixel of an output's row.
    void copy_phase(index_t image, index_t row, index_t from, index_t phase, index_t phase_w, const Wave& wave) const {
        const Tensor &x = wave.tensors[input_], &y = wave.tensors[output_];
        const index_t step = blocks_.block_w;
        const index_t first = (phase_w + step - blocks_.crop_left % step) % step;
        if (first >= out_.w) return;
        wave.kernels_of(input_).copy_image(window_copy(
            x, image, in_, {phase * channels_, (phase + 1) * channels_},
            {.y0 = from, .rows = 1, .x0 = (first + blocks_.crop_left) / step, .cols = ceil_div(out_.w - first, step)},
            y.at(image * y.image + row * y.row + first * y.pixel), step * y.pixel));
    }

    DepthToSpace blocks_;
    index_t channels_;  // of the output
};

}  // namespace

std::unique_ptr<Step> make_depth_to_space_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<DepthToSpaceStep>(context, context.layers[layer]);
}

}  // namespace resfuse
