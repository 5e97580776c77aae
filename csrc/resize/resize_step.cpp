// Nearest and bilinear resampling as a step of a plan. Where an output's pixels lie in the input is computed as torch
// does it, in fp32.
#include <algorithm>
#include <cmath>

#include "plan/image_step.h"

namespace resfuse {

namespace {

float nearest_scale(index_t in, index_t out, double scale) {
    return scale > 0.0 ? static_cast<float>(1.0 / scale) : static_cast<float>(in) / static_cast<float>(out);
}

float corner_scale(index_t in, index_t out) {
    return out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0.0f;
}

// Of all outputs along one dimension.
std::vector<ResizeTap> taps_of(const Resize& resize, index_t in, index_t out, double scale) {
    std::vector<ResizeTap> taps;
    const bool corners = resize.bilinear && resize.align_corners;
    const float step = corners ? corner_scale(in, out) : nearest_scale(in, out, scale);
    for (index_t i = 0; i < out; ++i) {
        const auto at = static_cast<float>(i);
        if (!resize.bilinear) {
            const index_t first = std::min(static_cast<index_t>(std::floor(at * step)), in - 1);
            taps.push_back({first, first, 0.0f});
            continue;
        }
        const float place = corners ? step * at : std::max(step * (at + 0.5f) - 0.5f, 0.0f);
        const index_t first = std::min(static_cast<index_t>(place), in - 1);
        taps.push_back({first, std::min(first + 1, in - 1),
                        std::clamp(place - static_cast<float>(first), 0.0f, 1.0f)});
    }
    return taps;
}

class ResizeStep final : public ImageStep {
  public:
    ResizeStep(const StepContext& context, const Layer& layer)
        : ImageStep(context, layer.input, layer.output, context.buffer(layer.output).extent.h),
          channels_(layer.out_channels),
          nearest_(!layer.resize.bilinear),
          rows_(taps_of(layer.resize, in_.h, out_.h, layer.resize.scale_h)),
          cols_(taps_of(layer.resize, in_.w, out_.w, layer.resize.scale_w)) {}

  private:
    void run_part(index_t image, Range rows, const Wave& wave, void*) const override {
        const Tensor &x = wave.tensors[input_], &y = wave.tensors[output_];
        for (index_t row = rows.begin; row < rows.end; ++row) {
            const ResizeTap& tap = rows_[static_cast<std::size_t>(row)];
            wave.kernels_of(input_).resize_row({.top = x.at(image * x.image + tap.first * x.row),
                                                .bottom = x.at(image * x.image + tap.second * x.row),
                                                .bottom_weight = tap.weight,
                                                .pixel = x.pixel,
                                                .taps = cols_.data(),
                                                .cols = out_.w,
                                                .channels = channels_,
                                                .y = y.at(image * y.image + row * y.row),
                                                .y_pixel = y.pixel,
                                                .nearest = nearest_});
        }
    }

    index_t channels_;
    bool nearest_;
    std::vector<ResizeTap> rows_, cols_;
};

}  // namespace

std::unique_ptr<Step> make_resize_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<ResizeStep>(context, context.layers[layer]);
}

}  // namespace resfuse
