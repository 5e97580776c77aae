// Channels of groups that take turns (Zhang et al., 2018, "ShuffleNet"), as a step of a plan.
#include "plan/image_step.h"

namespace resfuse {

namespace {

class ChannelShuffleStep final : public ImageStep {
  public:
    ChannelShuffleStep(const StepContext& context, const Layer& layer)
        : ImageStep(context, layer.input, layer.output, context.buffer(layer.output).extent.h),
          groups_(layer.groups),
          each_(layer.out_channels / layer.groups) {}

  private:
    // The groups of each pixel are copied as if they were the planes of an image of one row.
    void run_part(index_t image, Range rows, const Wave& wave, void*) const override {
        const Tensor &x = wave.tensors[input_], &y = wave.tensors[output_];
        const auto copy = wave.kernels_of(input_).copy_image;
        for (index_t row = rows.begin; row < rows.end; ++row)
            for (index_t col = 0; col < out_.w; ++col)
                copy({.image = x.at(image * x.image + row * x.row + col * x.pixel),
                      .height = 1,
                      .width = each_,
                      .channels = groups_,
                      .stride_h = 0,
                      .stride_w = x.channel,
                      .stride_c = each_ * x.channel,
                      .y0 = 0,
                      .rows = 1,
                      .x0 = 0,
                      .cols = each_,
                      .band = y.at(image * y.image + row * y.row + col * y.pixel),
                      .pixel = groups_});
    }

    index_t groups_, each_;  // channels of a group
};

}  // namespace

std::unique_ptr<Step> make_channel_shuffle_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<ChannelShuffleStep>(context, context.layers[layer]);
}

}  // namespace resfuse
