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

// Where the outputs along one dimension lie.
struct Axis {
    Axis(const Resize& resize, index_t in_size, index_t out_size, double scale)
        : nearest(!resize.bilinear),
          corners(resize.bilinear && resize.align_corners),
          in(in_size),
          step(corners ? corner_scale(in_size, out_size) : nearest_scale(in_size, out_size, scale)) {}

    ResizeTap tap(index_t i) const {
        const auto at = static_cast<float>(i);
        if (nearest) {
            const index_t first = std::min(static_cast<index_t>(std::floor(at * step)), in - 1);
            return {first, first, 0.0f};
        }
        const float place = corners ? step * at : std::max(step * (at + 0.5f) - 0.5f, 0.0f);
        const index_t first = std::min(static_cast<index_t>(place), in - 1);
        return {first, std::min(first + 1, in - 1), std::clamp(place - static_cast<float>(first), 0.0f, 1.0f)};
    }

    bool nearest, corners;
    index_t in;
    float step;
};

class ResizeStep final : public ImageStep {
  public:
    ResizeStep(const StepContext& context, const Layer& layer)
        : ImageStep(context, layer.input, layer.output, context.buffer(layer.output).extent.h),
          channels_(layer.out_channels),
          rows_(layer.resize, in_.h, out_.h, layer.resize.scale_h),
          cols_(layer.resize, in_.w, out_.w, layer.resize.scale_w) {
        thread_scratch = static_cast<std::size_t>(out_.w) * sizeof(ResizeTap);
    }

  private:
    void run_part(index_t image, Range rows, const Wave& wave, void* scratch) const override {
        const Tensor &x = wave.tensors[input_], &y = wave.tensors[output_];
        auto* const taps = static_cast<ResizeTap*>(scratch);
        for (index_t col = 0; col < out_.w; ++col) taps[col] = cols_.tap(col);
        for (index_t row = rows.begin; row < rows.end; ++row) {
            const ResizeTap tap = rows_.tap(row);
            wave.kernels_of(input_).resize_row({.top = x.at(image * x.image + tap.first * x.row),
                                                .bottom = x.at(image * x.image + tap.second * x.row),
                                                .bottom_weight = tap.weight,
                                                .pixel = x.pixel,
                                                .taps = taps,
                                                .cols = out_.w,
                                                .channels = channels_,
                                                .y = y.at(image * y.image + row * y.row),
                                                .y_pixel = y.pixel,
                                                .nearest = rows_.nearest});
        }
    }

    index_t channels_;
    Axis rows_, cols_;
};

}  // namespace

std::unique_ptr<Step> make_resize_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<ResizeStep>(context, context.layers[layer]);
}

}  // namespace resfuse
