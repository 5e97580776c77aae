// Convolution in small groups. Tasks are bands of rows, and vectors of channels, of single images.
#include <algorithm>

#include "conv/conv_step.h"
#include "conv/grouped/grouped.h"

namespace resfuse {

namespace {

class GroupedStep final : public ConvStep {
  public:
    GroupedStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm)
        : ConvStep(context, index, algorithm),
          f2_(&algorithm == &grouped_f2()),
          vector_(context.kernels().vector_floats),
          vectors_(ceil_div(layer_.out_channels, vector_)) {
        // A band of rows for each thread, as the layers before and behind are cut: its pixels are in its caches then.
        // More tasks by vectors of channels, which have nothing in common; bands read the rows between them twice.
        const index_t wanted = ceil_div(4 * context.threads, context.images);
        bands_ = std::min(ceil_div(context.threads, context.images), row_units());
        if (weights_outweigh_pixels()) bands_ = 1;
        chunks_ = std::min(ceil_div(wanted, bands_), vectors_);
        if (chunks_ * bands_ < wanted) bands_ = std::min(ceil_div(wanted, chunks_), row_units());
        if (f2_) return;
        const Window& w = layer_.window;
        const index_t span_h = (w.kernel_h - 1) * w.dilation_h + 1, span_w = (w.kernel_w - 1) * w.dilation_w + 1;
        thread_scratch = float_bytes(span_h * ((out_.w - 1) * w.stride_w + span_w) * vector_);
    }

    index_t tasks(int, index_t images) const override { return images * chunks_ * bands_; }

    void run(int, index_t task, const Wave& wave, void* scratch) const override {
        const index_t image = task / (chunks_ * bands_);
        const Range vectors = part(vectors_, task % chunks_, chunks_),
                    units = part(row_units(), task / chunks_ % bands_, bands_),
                    rows{units.begin * unit(), std::min(units.end * unit(), out_.h)};
        const Window& w = layer_.window;
        const Tensor& y = wave.tensors[layer_.output];
        const Residual residual = residual_at(wave, layer_, image, 0, 0);
        const index_t begin = vectors.begin * vector_, end = std::min(vectors.end * vector_, layer_.out_channels);
        const GroupedArgs args{.image = image_view(wave.tensors[layer_.input], image, in_),
                               .channels = layer_.out_channels,
                               .group = layer_.group_in(),
                               .window = w.args(),
                               .weight = weights(wave),
                               .scale = scale(wave),
                               .bias = bias(wave),
                               .y = y.at(image * y.image),
                               .y_pixel = y.pixel,
                               .out_width = out_.w,
                               .out_row_begin = rows.begin,
                               .out_row_end = rows.end,
                               .channel_begin = begin,
                               .channel_end = end,
                               .residual = residual.data,
                               .residual_pixel = residual.pixel,
                               .floor = activation_floor(layer_.activation),
                               .activation = activation(wave),
                               .rows = static_cast<float*>(scratch)};
        if (!layer_.is_int8()) return (f2_ ? reads(wave).grouped_f2 : reads(wave).grouped)(args);
        wave.kernels.int8.grouped({.grouped = args,
                                   .type = wave.tensors[layer_.input].type,
                                   .range = *layer_.reads,
                                   .epilogue = int8_epilogue_});
        if (activates_apart(layer_))
            writes(wave).activate({activation(wave, begin),
                                   y.at(image * y.image + rows.begin * out_.w * y.pixel + begin), rows.size() * out_.w,
                                   y.pixel, end - begin});
    }

  private:
    // Every band reads them all.
    bool weights_outweigh_pixels() const {
        const Window& w = layer_.window;
        return w.kernel_h * w.kernel_w * layer_.group_in() > in_.h * in_.w;
    }

    // Bands are of whole rows of tiles, or results would depend on where they begin.
    index_t unit() const { return f2_ ? 2 : 1; }
    index_t row_units() const { return ceil_div(out_.h, unit()); }

    bool f2_;  // by F(2x2, 3x3)
    index_t vector_, vectors_;
    index_t chunks_ = 1;  // of the channels of an image
    index_t bands_ = 1;   // of its rows
};

}  // namespace

std::unique_ptr<Step> make_grouped_step(const StepContext& context, std::size_t layer, const ConvAlgorithm& algorithm) {
    return std::make_unique<GroupedStep>(context, layer, algorithm);
}

}  // namespace resfuse
