// The steps whose tasks are bands of rows, or ranges of channels, of single images: convolution in small groups,
// max- and average pool, global average pool, changes of layout.
#include <algorithm>

#include "plan/step.h"

namespace resfuse {

namespace {

class ImageStep : public Step {
  public:
    ImageStep(const StepContext& context, int input, int output, index_t parts_of)
        : input_(input),
          output_(output),
          in_(context.extents[static_cast<std::size_t>(input)]),
          out_(context.extents[static_cast<std::size_t>(output)]),
          parts_of_(parts_of),
          parts_(
              std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, std::max<index_t>(parts_of, 1))) {}

    index_t tasks(int, index_t images) const override { return images * parts_; }

    void run(int, index_t task, const Wave& wave, float* scratch) const override {
        run_part(task / parts_, part(parts_of_, task % parts_, parts_), wave, scratch);
    }

  protected:
    virtual void run_part(index_t image, Range range, const Wave& wave, float* scratch) const = 0;

    int input_, output_;
    Extent in_, out_;
    index_t parts_of_;  // rows or channel vectors of an image
    index_t parts_;     // tasks that they are cut into
};

class GroupedStep final : public Step {
  public:
    GroupedStep(const StepContext& context, std::size_t index, Algorithm algorithm)
        : index_(index),
          layer_(context.layers[index]),
          algorithm_(algorithm),
          in_(context.extents[static_cast<std::size_t>(layer_.input)]),
          out_(context.extents[static_cast<std::size_t>(layer_.output)]),
          vector_(context.kernels().vector_floats),
          vectors_(ceil_div(layer_.out_channels, vector_)) {
        // A band of rows for each thread, as the layers before and behind are cut: its pixels are in its caches then.
        // More tasks by vectors of channels, which have nothing in common; bands read the rows between them twice.
        const index_t wanted = ceil_div(4 * context.threads, context.images);
        bands_ = std::min(ceil_div(context.threads, context.images), row_units());
        chunks_ = std::min(ceil_div(wanted, bands_), vectors_);
        if (chunks_ * bands_ < wanted) bands_ = std::min(ceil_div(wanted, chunks_), row_units());
        if (algorithm == Algorithm::grouped_f2) return;
        const Window& w = layer_.window;
        const index_t span_h = (w.kernel_h - 1) * w.dilation_h + 1, span_w = (w.kernel_w - 1) * w.dilation_w + 1;
        thread_scratch = static_cast<std::size_t>(span_h * ((out_.w - 1) * w.stride_w + span_w) * vector_);
    }

    index_t tasks(int, index_t images) const override { return images * chunks_ * bands_; }

    void run(int, index_t task, const Wave& wave, float* scratch) const override {
        const index_t image = task / (chunks_ * bands_);
        const Range vectors = part(vectors_, task % chunks_, chunks_),
                    units = part(row_units(), task / chunks_ % bands_, bands_),
                    rows{units.begin * unit(), std::min(units.end * unit(), out_.h)};
        const Window& w = layer_.window;
        const Tensor& y = wave.tensors[layer_.output];
        const Residual residual = residual_at(wave, layer_, image, 0, 0);
        const index_t begin = vectors.begin * vector_, end = std::min(vectors.end * vector_, layer_.out_channels);
        const auto kernel = algorithm_ == Algorithm::grouped_f2 ? wave.kernels.grouped_f2 : wave.kernels.grouped;
        kernel({.image = image_view(wave.tensors[layer_.input], image, in_),
                .channels = layer_.out_channels,
                .group = layer_.group_in(),
                .kernel_h = w.kernel_h,
                .kernel_w = w.kernel_w,
                .stride_h = w.stride_h,
                .stride_w = w.stride_w,
                .dilation_h = w.dilation_h,
                .dilation_w = w.dilation_w,
                .pad_top = w.pad_top,
                .pad_left = w.pad_left,
                .weight = wave.weights.packed(index_, algorithm_),
                .scale = wave.weights.scale(index_),
                .bias = wave.weights.bias(index_),
                .y = y.data + image * y.image,
                .y_pixel = y.pixel,
                .out_width = out_.w,
                .out_row_begin = rows.begin,
                .out_row_end = rows.end,
                .channel_begin = begin,
                .channel_end = end,
                .residual = residual.data,
                .residual_pixel = residual.pixel,
                .floor = activation_floor(layer_.activation),
                .rows = scratch});
        if (is_by_element(layer_.activation))
            for (index_t pixel = rows.begin * out_.w; pixel < rows.end * out_.w; ++pixel)
                wave.kernels.activate({layer_.activation, layer_.slope},
                                      y.data + image * y.image + pixel * y.pixel + begin, end - begin);
    }

  private:
    // Bands are of whole rows of tiles, or results would depend on where they begin.
    index_t unit() const { return algorithm_ == Algorithm::grouped_f2 ? 2 : 1; }
    index_t row_units() const { return ceil_div(out_.h, unit()); }

    std::size_t index_;
    const Layer& layer_;
    Algorithm algorithm_;
    Extent in_, out_;
    index_t vector_, vectors_;
    index_t chunks_ = 1;  // of the channels of an image
    index_t bands_ = 1;   // of its rows
};

class PoolStep final : public ImageStep {
  public:
    PoolStep(const StepContext& context, const Layer& layer)
        : ImageStep(context, layer.input, layer.output, context.extents[static_cast<std::size_t>(layer.output)].h),
          layer_(layer) {}

  private:
    void run_part(index_t image, Range rows, const Wave& wave, float*) const override {
        const Window& w = layer_.window;
        const Tensor& y = wave.tensors[output_];
        const MaxPoolArgs pool{.image = image_view(wave.tensors[input_], image, in_),
                               .channels = layer_.out_channels,
                               .kernel_h = w.kernel_h,
                               .kernel_w = w.kernel_w,
                               .stride_h = w.stride_h,
                               .stride_w = w.stride_w,
                               .dilation_h = w.dilation_h,
                               .dilation_w = w.dilation_w,
                               .pad_top = w.pad_top,
                               .pad_left = w.pad_left,
                               .y = y.data + image * y.image + rows.begin * y.row,
                               .y_row = y.row,
                               .out_width = out_.w,
                               .out_row_begin = rows.begin,
                               .out_row_end = rows.end};
        if (layer_.kind == LayerKind::max_pool) {
            wave.kernels.max_pool(pool);
        } else {
            wave.kernels.avg_pool({pool, w.pad_bottom, w.pad_right, layer_.counts_padding});
        }
    }

    const Layer& layer_;
};

class GlobalAvgPoolStep final : public ImageStep {
  public:
    GlobalAvgPoolStep(const StepContext& context, const Layer& layer)
        : ImageStep(context, layer.input, layer.output, ceil_div(layer.out_channels, context.kernels().vector_floats)),
          channels_(layer.out_channels),
          vector_(context.kernels().vector_floats) {
        thread_scratch = static_cast<std::size_t>(parts_of_ * vector_);
    }

  private:
    void run_part(index_t image, Range vectors, const Wave& wave, float* scratch) const override {
        const Tensor& y = wave.tensors[output_];
        const index_t begin = vectors.begin * vector_, end = std::min(vectors.end * vector_, channels_);
        pool_pixels(wave.kernels, image_view(wave.tensors[input_], image, in_), begin, end, scratch,
                    y.data + image * y.image + begin);
    }

    index_t channels_, vector_;
};

class LayoutStep final : public ImageStep {
  public:
    LayoutStep(const StepContext& context, int from, int to)
        : ImageStep(context, from, to, context.extents[static_cast<std::size_t>(to)].h),
          channels_(context.program.channels(to)) {}

  private:
    void run_part(index_t image, Range rows, const Wave& wave, float*) const override {
        const Tensor& y = wave.tensors[output_];
        copy_window(wave, input_, image, in_, {0, channels_},
                    {.y0 = rows.begin, .rows = rows.size(), .x0 = 0, .cols = in_.w},
                    y.data + image * y.image + rows.begin * y.row, y.pixel);
    }

    index_t channels_;
};

class PlanesStep final : public Step {
  public:
    PlanesStep(const StepContext& context, std::unique_ptr<Step> step, int from, int to)
        : step_(std::move(step)),
          from_(from),
          to_(to),
          channels_(context.program.channels(from)),
          extent_(context.extents[static_cast<std::size_t>(from)]),
          parts_(std::clamp<index_t>(ceil_div(4 * context.threads, context.images), 1, lines())) {
        thread_scratch = step_->thread_scratch;
        shared_scratch = step_->shared_scratch;
    }

    int stages() const override { return step_->stages() + 1; }

    index_t tasks(int stage, index_t images) const override {
        return stage < step_->stages() ? step_->tasks(stage, images) : images * parts_;
    }

    void run(int stage, index_t task, const Wave& wave, float* scratch) const override {
        if (stage < step_->stages()) return step_->run(stage, task, wave, scratch);
        const Tensor &x = wave.tensors[from_], &y = wave.tensors[to_];
        const index_t image = task / parts_;
        // Whole cache lines of the planes.
        const Range some = part(lines(), task % parts_, parts_);
        const index_t first = some.begin * kLineFloats, end = std::min(some.end * kLineFloats, extent_.h * extent_.w);
        wave.kernels.transpose({.x = x.data + image * x.image + first * x.pixel,
                                .rows = end - first,
                                .cols = channels_,
                                .pitch = x.pixel,
                                .y = y.data + image * y.image + first,
                                .y_pitch = y.channel});
    }

    bool pools() const override { return step_->pools(); }

  private:
    index_t lines() const { return ceil_div(extent_.h * extent_.w, kLineFloats); }

    std::unique_ptr<Step> step_;
    int from_, to_;
    index_t channels_;
    Extent extent_;
    index_t parts_;
};

class FusedAwayStep final : public Step {
  public:
    int stages() const override { return 0; }
    index_t tasks(int, index_t) const override { return 0; }
    void run(int, index_t, const Wave&, float*) const override {}
};

}  // namespace

std::unique_ptr<Step> make_fused_away_step() { return std::make_unique<FusedAwayStep>(); }

std::unique_ptr<Step> make_grouped_step(const StepContext& context, std::size_t layer, Algorithm algorithm) {
    return std::make_unique<GroupedStep>(context, layer, algorithm);
}

std::unique_ptr<Step> make_pool_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<PoolStep>(context, context.layers[layer]);
}

std::unique_ptr<Step> make_global_avg_pool_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<GlobalAvgPoolStep>(context, context.layers[layer]);
}

std::unique_ptr<Step> make_planes_step(const StepContext& context, std::unique_ptr<Step> step, int from, int to) {
    return std::make_unique<PlanesStep>(context, std::move(step), from, to);
}

std::unique_ptr<Step> make_layout_step(const StepContext& context, int from, int to) {
    return std::make_unique<LayoutStep>(context, from, to);
}

}  // namespace resfuse
