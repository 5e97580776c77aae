// Group normalisation (Wu & He, 2018, "Group Normalization") and layer normalisation over channels. y = (x - mean) /
// sqrt(variance + eps) * scale + bias, with the mean and the variance of each image's group of channels. The first
// stage sums parts of an image, which depend on its size alone, so that results are the same bits for any number of
// threads; the second one adds them up in their order.
#include <algorithm>
#include <cmath>

#include "memory/arena.h"
#include "plan/step.h"
#include "weights/weights.h"

namespace resfuse {

namespace {

class GroupNormStep final : public Step {
  public:
    GroupNormStep(const StepContext& context, std::size_t index)
        : index_(index),
          layer_(context.layers[index]),
          extent_(context.buffer(layer_.output).extent),
          parts_(std::clamp<index_t>(pixels() / kFewestPixels, 1, kMostParts)),
          bands_(std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, extent_.h)) {
        const std::size_t channels = static_cast<std::size_t>(layer_.out_channels);
        sums_bytes_ = arena_round_up(static_cast<std::size_t>(context.images * parts_) * 2 * channels * sizeof(double));
        factors_bytes_ = static_cast<std::size_t>(context.images) * 3 * channels * sizeof(float);
        shared_scratch = sums_bytes_ + factors_bytes_;
        thread_scratch = float_bytes(3 * layer_.out_channels);
    }

    int stages() const override { return 3; }

    index_t tasks(int stage, index_t images) const override {
        return images * (stage == 0 ? parts_ : stage == 1 ? 1 : bands_);
    }

    void run(int stage, index_t task, const Wave& wave, void* scratch) const override {
        if (stage == 0) {
            sum(task / parts_, task % parts_, wave, static_cast<float*>(scratch));
        } else if (stage == 1) {
            find_factors(task, wave, static_cast<float*>(scratch));
        } else {
            apply(task / bands_, part(extent_.h, task % bands_, bands_), wave);
        }
    }

  private:
    static constexpr index_t kFewestPixels = 64, kMostParts = 16;

    index_t pixels() const { return extent_.h * extent_.w; }

    double* sums(const Wave& wave, index_t image, index_t i) const {
        return static_cast<double*>(wave.shared) + (image * parts_ + i) * 2 * layer_.out_channels;
    }
    // The mean, the scale and the bias of each channel.
    float* factors(const Wave& wave, index_t image) const {
        return reinterpret_cast<float*>(static_cast<std::byte*>(wave.shared) + sums_bytes_) +
               image * 3 * layer_.out_channels;
    }

    // The first pixel is within a few deviations of the mean, mostly.
    void find_shift(index_t image, const Wave& wave, float* shift) const {
        const Tensor& x = wave.tensors[layer_.input];
        wave.kernels_of(layer_.input)
            .copy_band(window_copy(x, image, {1, 1}, {0, layer_.out_channels}, {.y0 = 0, .rows = 1, .x0 = 0, .cols = 1},
                                   shift, layer_.out_channels));
    }

    void sum(index_t image, index_t i, const Wave& wave, float* scratch) const {
        const Tensor& x = wave.tensors[layer_.input];
        const Range some = part(pixels(), i, parts_);
        find_shift(image, wave, scratch);
        wave.kernels_of(layer_.input)
            .norm_sums({x.at(image * x.image + some.begin * x.pixel), x.pixel, some.size(), layer_.out_channels,
                        scratch, scratch + layer_.out_channels, sums(wave, image, i)});
    }

    void find_factors(index_t image, const Wave& wave, float* shift) const {
        const index_t channels = layer_.out_channels, each = channels / layer_.groups;
        find_shift(image, wave, shift);
        double* const total = sums(wave, image, 0);
        for (index_t i = 1; i < parts_; ++i)
            for (index_t c = 0; c < 2 * channels; ++c) total[c] += sums(wave, image, i)[c];
        const double pixels = static_cast<double>(this->pixels());
        float *const mean = factors(wave, image), *const scale = mean + channels, *const bias = scale + channels;
        for (index_t group = 0; group < layer_.groups; ++group) {
            const index_t begin = group * each, end = begin + each;
            double average = 0.0, variance = 0.0;
            for (index_t c = begin; c < end; ++c) average += static_cast<double>(shift[c]) + total[c] / pixels;
            average /= static_cast<double>(each);
            for (index_t c = begin; c < end; ++c) {
                const double own = total[c] / pixels, apart = static_cast<double>(shift[c]) + own - average;
                variance += std::max(total[channels + c] / pixels - own * own, 0.0) + apart * apart;
            }
            const double inverse =
                1.0 / std::sqrt(variance / static_cast<double>(each) + static_cast<double>(layer_.eps));
            for (index_t c = begin; c < end; ++c) {
                mean[c] = static_cast<float>(average);
                scale[c] = static_cast<float>(static_cast<double>(wave.weights.scale(index_)[c]) * inverse);
                // What the rounding of the mean leaves out.
                bias[c] = static_cast<float>(static_cast<double>(wave.weights.bias(index_)[c]) +
                                             (static_cast<double>(mean[c]) - average) * static_cast<double>(scale[c]));
            }
        }
    }

    void apply(index_t image, Range rows, const Wave& wave) const {
        const Operand x = operand(wave, layer_.input, image, rows.begin),
                      residual = operand(wave, layer_.residual, image, rows.begin),
                      y = operand(wave, layer_.output, image, rows.begin);
        const float* const mean = factors(wave, image);
        wave.kernels_of(layer_.output)
            .norm_apply({.x = x.data,
                         .x_pixel = x.pixel,
                         .product = nullptr,
                         .product_pixel = 0,
                         .residual = residual.data,
                         .residual_pixel = residual.pixel,
                         .rows = rows.size() * extent_.w,
                         .channels = layer_.out_channels,
                         .mean = mean,
                         .scale = mean + layer_.out_channels,
                         .bias = mean + 2 * layer_.out_channels,
                         .floor = activation_floor(layer_.activation),
                         .y = y.data,
                         .y_pixel = y.pixel,
                         .activation = activation_by_element(layer_, wave.weights.slopes(index_))});
    }

    std::size_t index_;
    const Layer& layer_;
    Extent extent_;
    index_t parts_;  // of an image, whose sums are taken apart
    index_t bands_;  // of its rows
    std::size_t sums_bytes_ = 0, factors_bytes_ = 0;
};

class LayerNormStep final : public Step {
  public:
    LayerNormStep(const StepContext& context, std::size_t index)
        : index_(index),
          layer_(context.layers[index]),
          extent_(context.buffer(layer_.output).extent),
          bands_(std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, extent_.h)) {}

    index_t tasks(int, index_t images) const override { return images * bands_; }

    void run(int, index_t task, const Wave& wave, void*) const override {
        const index_t image = task / bands_;
        const Range rows = part(extent_.h, task % bands_, bands_);
        const Operand x = operand(wave, layer_.input, image, rows.begin),
                      y = operand(wave, layer_.output, image, rows.begin);
        wave.kernels_of(layer_.output)
            .layer_norm({.x = x.data,
                         .x_pixel = x.pixel,
                         .rows = rows.size() * extent_.w,
                         .channels = layer_.out_channels,
                         .eps = layer_.eps,
                         .scale = wave.weights.scale(index_),
                         .bias = wave.weights.bias(index_),
                         .y = y.data,
                         .y_pixel = y.pixel,
                         .floor = activation_floor(layer_.activation),
                         .activation = activation_by_element(layer_, wave.weights.slopes(index_))});
    }

  private:
    std::size_t index_;
    const Layer& layer_;
    Extent extent_;
    index_t bands_;
};

}  // namespace

std::unique_ptr<Step> make_group_norm_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<GroupNormStep>(context, layer);
}

std::unique_ptr<Step> make_layer_norm_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<LayerNormStep>(context, layer);
}

}  // namespace resfuse
