// What is computed element by element: act((x * scale + bias, or x * gate) + residual), scale and bias by channel, the
// gate by image and channel. Tasks are bands of rows of single images; all tensors are dense NHWC.
#include <algorithm>

#include "plan/step.h"
#include "weights/weights.h"

namespace resfuse {

namespace {

class AffineStep final : public Step {
  public:
    AffineStep(const StepContext& context, std::size_t index)
        : index_(index),
          layer_(context.layers[index]),
          out_(context.buffer(layer_.output).extent),
          bands_(std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, out_.h)) {}

    index_t tasks(int, index_t images) const override { return images * bands_; }

    void run(int, index_t task, const Wave& wave, void*) const override {
        const index_t image = task / bands_;
        const Range rows = part(out_.h, task % bands_, bands_);
        const auto first = [&](int buffer) {
            const Tensor& tensor = wave.tensors[buffer];
            return tensor.at(image * tensor.image + rows.begin * out_.w * layer_.out_channels);
        };
        const Tensor* gate = layer_.gate >= 0 ? &wave.tensors[layer_.gate] : nullptr;
        void* const y = first(layer_.output);
        wave.kernels_of(layer_.output)
            .norm_apply(
                {.x = first(layer_.input),
                 .residual = layer_.residual >= 0 ? first(layer_.residual) : nullptr,
                 .rows = rows.size() * out_.w,
                 .channels = layer_.out_channels,
                 .mean = wave.zeros,
                 .scale = gate ? static_cast<const float*>(gate->at(image * gate->image)) : wave.weights.scale(index_),
                 .bias = wave.weights.bias(index_),
                 .floor = activation_floor(layer_.activation),
                 .y = y});
        if (is_by_element(layer_.activation))
            wave.kernels_of(layer_.output)
                .activate({layer_.activation, layer_.slope}, y, rows.size() * out_.w * layer_.out_channels);
    }

  private:
    std::size_t index_;
    const Layer& layer_;
    Extent out_;
    index_t bands_;
};

}  // namespace

std::unique_ptr<Step> make_affine_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<AffineStep>(context, layer);
}

}  // namespace resfuse
