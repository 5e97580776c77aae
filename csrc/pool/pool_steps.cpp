// Max-, average and global average pools as steps of a plan.
#include "plan/image_step.h"

namespace resfuse {

namespace {

class PoolStep final : public ImageStep {
  public:
    PoolStep(const StepContext& context, const Layer& layer)
        : ImageStep(context, layer.input, layer.output, context.buffer(layer.output).extent.h), layer_(layer) {}

  private:
    void run_part(index_t image, Range rows, const Wave& wave, void*) const override {
        const Window& w = layer_.window;
        const Tensor& y = wave.tensors[output_];
        const MaxPoolArgs pool{.image = image_view(wave.tensors[input_], image, in_),
                               .channels = layer_.out_channels,
                               .window = w.args(),
                               .y = y.at(image * y.image + rows.begin * y.row),
                               .y_row = y.row,
                               .out_width = out_.w,
                               .out_row_begin = rows.begin,
                               .out_row_end = rows.end};
        if (layer_.kind == LayerKind::max_pool) {
            wave.kernels_of(output_).max_pool(pool);
        } else {
            wave.kernels_of(output_).avg_pool({pool, w.pad_bottom, w.pad_right, layer_.counts_padding});
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
        thread_scratch = float_bytes(parts_of_ * vector_);
    }

  private:
    void run_part(index_t image, Range vectors, const Wave& wave, void* scratch) const override {
        const Tensor& y = wave.tensors[output_];
        const index_t begin = vectors.begin * vector_, end = std::min(vectors.end * vector_, channels_);
        pool_pixels(wave.kernels_of(input_), wave.kernels_of(output_), image_view(wave.tensors[input_], image, in_),
                    wave.tensors[input_].type, begin, end, static_cast<float*>(scratch), y.at(image * y.image + begin));
    }

    index_t channels_, vector_;
};

}  // namespace

std::unique_ptr<Step> make_pool_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<PoolStep>(context, context.layers[layer]);
}

std::unique_ptr<Step> make_global_avg_pool_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<GlobalAvgPoolStep>(context, context.layers[layer]);
}

}  // namespace resfuse
