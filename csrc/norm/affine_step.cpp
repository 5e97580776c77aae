// What is computed element by element: act((x * scale + bias, or x * gate, times product) + residual), scale and bias
// by channel, the gate by image and channel. Tasks are bands of rows of single images.
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
          bands_(std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, out_.h)) {
        if (layer_.gate >= 0) thread_scratch = float_bytes(layer_.out_channels);
    }

    index_t tasks(int, index_t images) const override { return images * bands_; }

    void run(int, index_t task, const Wave& wave, void* scratch) const override {
        const index_t image = task / bands_;
        const Range rows = part(out_.h, task % bands_, bands_);
        const Operand x = operand(wave, layer_.input, image, rows.begin),
                      product = operand(wave, layer_.product, image, rows.begin),
                      residual = operand(wave, layer_.residual, image, rows.begin),
                      y = operand(wave, layer_.output, image, rows.begin);
        wave.kernels_of(layer_.output)
            .norm_apply({.x = x.data,
                         .x_pixel = x.pixel,
                         .product = product.data,
                         .product_pixel = product.pixel,
                         .residual = residual.data,
                         .residual_pixel = residual.pixel,
                         .rows = rows.size() * out_.w,
                         .channels = layer_.out_channels,
                         .mean = wave.zeros,
                         .scale = layer_.gate >= 0 ? gate_of(image, wave, static_cast<float*>(scratch))
                                                   : wave.weights.scale(index_),
                         .bias = wave.weights.bias(index_),
                         .floor = activation_floor(layer_.activation),
                         .y = y.data,
                         .y_pixel = y.pixel,
                         .activation = activation_by_element(layer_, wave.weights.slopes(index_))});
    }

  private:
    // The products take it in fp32.
    const float* gate_of(index_t image, const Wave& wave, float* scratch) const {
        const Tensor& gate = wave.tensors[layer_.gate];
        if (gate.type == DType::fp32) return static_cast<const float*>(gate.at(image * gate.image));
        copy_pixels(wave, layer_.gate, {image, image + 1}, layer_.out_channels, scratch, layer_.out_channels);
        return scratch;
    }

    std::size_t index_;
    const Layer& layer_;
    Extent out_;
    index_t bands_;
};

// The same where bytes are read, added or written.
class Int8AffineStep final : public Step {
  public:
    Int8AffineStep(const StepContext& context, std::size_t index)
        : index_(index),
          layer_(context.layers[index]),
          out_(context.buffer(layer_.output).extent),
          units_(int8_units(context.program, layer_)),
          output_(output_args(context.program, layer_)),
          bands_(std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, out_.h)) {
        if (context.buffer(layer_.input).type == DType::u8) range_ = context.program.range(layer_.input);
        if (layer_.residual >= 0) {
            residual_.type = context.buffer(layer_.residual).type;
            residual_.factor = residual_factor(context.program, layer_);
            if (residual_.type == DType::u8) residual_zero_ = context.program.range(layer_.residual).zero_point;
        }
        thread_scratch = float_bytes(2 * layer_.out_channels);
    }

    index_t tasks(int, index_t images) const override { return images * bands_; }

    void run(int, index_t task, const Wave& wave, void* scratch) const override {
        const index_t image = task / bands_, channels = layer_.out_channels;
        const Range rows = part(out_.h, task % bands_, bands_);
        const Operand x = operand(wave, layer_.input, image, rows.begin),
                      addend = operand(wave, layer_.residual, image, rows.begin),
                      y = operand(wave, layer_.output, image, rows.begin);
        const Tensor* const gate = layer_.gate >= 0 ? &wave.tensors[layer_.gate] : nullptr;
        const float* const gates = gate ? static_cast<const float*>(gate->at(image * gate->image)) : nullptr;
        float *const scale = static_cast<float*>(scratch), *const bias = scale + channels;
        for (index_t c = 0; c < channels; ++c) {
            const double factor = static_cast<double>(gates ? gates[c] : wave.weights.scale(index_)[c]) * units_ *
                                  static_cast<double>(range_.scale);
            const double added = gates ? 0.0 : static_cast<double>(wave.weights.bias(index_)[c]) * units_;
            scale[c] = static_cast<float>(factor);
            bias[c] = static_cast<float>(added - factor * range_.zero_point -
                                         static_cast<double>(residual_.factor) * residual_zero_);
        }
        AddendArgs residual = residual_;
        residual.data = addend.data;
        wave.kernels.int8.affine({.x = x.data,
                                  .x_pixel = x.pixel,
                                  .type = wave.tensors[layer_.input].type,
                                  .rows = rows.size() * out_.w,
                                  .channels = channels,
                                  .scale = scale,
                                  .bias = bias,
                                  .residual = residual,
                                  .residual_pixel = addend.pixel,
                                  .y = y.data,
                                  .y_pixel = y.pixel,
                                  .output = output_});
        if (layer_.activation == Activation::prelu)
            wave.fp32().activate({activation_by_element(layer_, wave.weights.slopes(index_)), y.data,
                                  rows.size() * out_.w, y.pixel, channels});
    }

  private:
    std::size_t index_;
    const Layer& layer_;
    Extent out_;
    double units_;
    OutputArgs output_;
    Quantization range_{1.0f, 0};  // of the input
    AddendArgs residual_{};
    int residual_zero_ = 0;
    index_t bands_;
};

}  // namespace

std::unique_ptr<Step> make_affine_step(const StepContext& context, std::size_t layer) {
    const Layer& l = context.layers[layer];
    const bool bytes = context.buffer(l.input).type == DType::u8 || l.type == DType::u8 ||
                       (l.residual >= 0 && context.buffer(l.residual).type == DType::u8);
    if (bytes) return std::make_unique<Int8AffineStep>(context, layer);
    return std::make_unique<AffineStep>(context, layer);
}

}  // namespace resfuse
