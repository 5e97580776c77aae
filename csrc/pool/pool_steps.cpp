// Max-, average and global average pools as steps of a plan.
#include "plan/image_step.h"

namespace resfuse {

namespace {

class PoolStep final : public ImageStep {
  public:
    PoolStep(const StepContext& context, const Layer& layer)
        : ImageStep(context, layer.input, layer.output, context.buffer(layer.output).extent.h),
          layer_(layer),
          bytes_(layer.kind == LayerKind::avg_pool && context.buffer(layer.input).type == DType::u8) {
        if (!bytes_) return;
        const Quantization& range = context.program.range(layer.input);
        zero_point_ = range.zero_point;
        output_args_ = output_args(context.program, layer);
        output_args_.steps = static_cast<float>(static_cast<double>(range.scale) * int8_units(context.program, layer));
    }

  private:
    void run_part(index_t image, Range rows, const Wave& wave, void*) const override {
        const Window& w = layer_.window;
        const Tensor& y = wave.tensors[output_];
        const MaxPoolArgs pool{.image = image_view(wave.tensors[input_], image, in_),
                               .channels = layer_.out_channels,
                               .window = w.args(),
                               .y = y.at(image * y.image + rows.begin * y.row),
                               .y_row = y.row,
                               .y_pixel = y.pixel,
                               .out_width = out_.w,
                               .out_row_begin = rows.begin,
                               .out_row_end = rows.end};
        if (bytes_) {
            const AvgPoolArgs average{pool, w.pad_bottom, w.pad_right, layer_.counts_padding};
            wave.kernels.int8.avg_pool({average, zero_point_, output_args_});
        } else if (layer_.kind == LayerKind::max_pool) {
            wave.kernels_of(output_).max_pool(pool);
        } else {
            wave.kernels_of(output_).avg_pool({pool, w.pad_bottom, w.pad_right, layer_.counts_padding});
        }
    }

    const Layer& layer_;
    bool bytes_;  // whether sums of bytes are taken
    int zero_point_ = 0;
    OutputArgs output_args_{};
};

class GlobalAvgPoolStep final : public ImageStep {
  public:
    GlobalAvgPoolStep(const StepContext& context, const Layer& layer)
        : ImageStep(context, layer.input, layer.output, ceil_div(layer.out_channels, context.kernels().vector_floats)),
          channels_(layer.out_channels),
          vector_(context.kernels().vector_floats),
          bytes_(context.buffer(layer.input).type == DType::u8) {
        thread_scratch = float_bytes(parts_of_ * vector_);
        if (!bytes_) return;
        range_ = context.program.range(layer.input);
        output_args_ = output_args(context.program, layer);
        output_args_.steps = static_cast<float>(int8_units(context.program, layer));
    }

  private:
    void run_part(index_t image, Range vectors, const Wave& wave, void* scratch) const override {
        const Tensor& y = wave.tensors[output_];
        const index_t begin = vectors.begin * vector_, end = std::min(vectors.end * vector_, channels_);
        if (bytes_) {
            ImageView image_of_channels = image_view(wave.tensors[input_], image, in_);
            image_of_channels.data = element_at(image_of_channels.data, begin, DType::u8);
            return wave.kernels.int8.mean({.image = image_of_channels,
                                           .channels = end - begin,
                                           .range = range_,
                                           .y = y.at(image * y.image + begin),
                                           .output = output_args_});
        }
        pool_pixels(wave.kernels_of(input_), wave.kernels_of(output_), image_view(wave.tensors[input_], image, in_),
                    wave.tensors[input_].type, begin, end, static_cast<float*>(scratch), y.at(image * y.image + begin));
    }

    index_t channels_, vector_;
    bool bytes_;
    Quantization range_{};
    OutputArgs output_args_{};
};

}  // namespace

std::unique_ptr<Step> make_pool_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<PoolStep>(context, context.layers[layer]);
}

std::unique_ptr<Step> make_global_avg_pool_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<GlobalAvgPoolStep>(context, context.layers[layer]);
}

}  // namespace resfuse
