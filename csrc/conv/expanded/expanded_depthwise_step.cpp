// Tasks are bands of output rows of some panels of channels. A task computes the 1x1 convolution's rows as they are
// needed, with padding, in a ring in its scratch, and of these one row of outputs at a time.
#include <algorithm>
#include <array>

#include "conv/conv_step.h"
#include "conv/expanded/expanded_depthwise.h"
#include "conv/expanded/expanded_rows.h"
#include "conv/grouped/grouped.h"

namespace resfuse {

namespace {

constexpr index_t kMostKernelRows = 16;

// A global average pool of fp32 means in memory of ours.
const Layer* pool_behind(const StepContext& context, int output) {
    for (const Layer& pool : context.layers)
        if (pool.kind == LayerKind::global_avg_pool && pool.input == output && pool.type == DType::fp32 &&
            !context.buffer(pool.output).is_external() && !context.buffer(pool.output).is_view())
            return &pool;
    return nullptr;
}

class ExpandedDepthwiseStep final : public ConvStep {
  public:
    ExpandedDepthwiseStep(const StepContext& context, std::size_t index, std::size_t expand)
        : ConvStep(context, index, grouped()),
          expanded_(context, expand),
          averaged_(pool_behind(context, layer_.output)),
          panel_(context.kernels().tile_cols),
          panels_(ceil_div(layer_.out_channels, panel_)) {
        const Window& w = layer_.window;
        row_pixels_ = std::max((out_.w - 1) * w.stride_w + w.kernel_w, w.pad_left + in_.w);
        // A band of rows for each thread, as the layers before and behind are cut: its pixels are in its caches then.
        // More tasks by channels, which have nothing in common; bands make the rows between them twice.
        const index_t wanted = ceil_div(4 * context.threads, context.images);
        const index_t twice = std::max<index_t>(w.kernel_h - w.stride_h, 0);
        const index_t most = twice > 0 ? std::max<index_t>(in_.h / (4 * twice), 1) : out_.h;
        bands_ = std::min({ceil_div(context.threads, context.images), most, out_.h});
        chunks_ =
            std::min(std::max(ceil_div(wanted, bands_), ceil_div(ring_floats(panels_), kMostRingFloats)), panels_);
        if (chunks_ * bands_ < wanted) bands_ = std::min(ceil_div(wanted, chunks_), out_.h);
        thread_scratch = float_bytes(ring_floats(ceil_div(panels_, chunks_)));
        if (averaged_) shared_scratch = float_bytes(context.images * out_.h * layer_.out_channels);
    }

    const Layer* gathers() const override { return averaged_; }

    int stages() const override { return averaged_ ? 2 : 1; }

    index_t tasks(int stage, index_t images) const override { return stage == 1 ? images : images * chunks_ * bands_; }

    void run(int stage, index_t task, const Wave& wave, void* scratch) const override {
        if (stage == 1) return average(task, wave);
        const Window& w = layer_.window;
        const index_t image = task / (chunks_ * bands_);
        const Range panels = part(panels_, task % chunks_, chunks_),
                    rows = part(out_.h, task / chunks_ % bands_, bands_);
        const Ring ring(static_cast<float*>(scratch), panels.size() * panel_, *this);
        const Tensor& y = wave.tensors[layer_.output];
        const index_t channel = panels.begin * panel_;
        std::array<const float*, kMostKernelRows> taps{};
        DepthwiseRowArgs args{.rows = taps.data(),
                              .pixel = ring.pixel,
                              .window = w.args(),
                              .weight = weights(wave) + channel * w.kernel_h * w.kernel_w,
                              .scale = scale(wave, channel),
                              .bias = bias(wave, channel),
                              .floor = activation_floor(layer_.activation),
                              .activation = activation(wave, channel),
                              .y_pixel = y.pixel,
                              .width = out_.w,
                              .channels = std::min(panels.end * panel_, layer_.out_channels) - channel};
        index_t made = 0;
        for (index_t row = rows.begin; row < rows.end; ++row) {
            const index_t first = row * w.stride_h - w.pad_top;
            made = std::max(made, first);
            for (const index_t end = std::min(first + w.kernel_h, in_.h); made < end; ++made)
                expanded_.compute(image, made, panels, ring.row(made) + w.pad_left * ring.pixel, ring.pixel, wave);
            for (index_t r = 0; r < w.kernel_h; ++r) {
                const index_t at = first + r;
                taps[static_cast<std::size_t>(r)] = at < 0 || at >= in_.h ? ring.zeros() : ring.row(at);
            }
            const Residual residual = residual_at(wave, layer_, image, row, channel);
            args.residual = static_cast<const float*>(residual.data);
            args.residual_pixel = residual.pixel;
            args.y = static_cast<float*>(y.at(image * y.image + row * y.row + channel));
            wave.kernels.depthwise_row(args);
            if (averaged_) add_row(args, row_sums(image, row, wave) + channel, wave);
        }
    }

  private:
    static constexpr index_t kMostRingFloats = 64 * 1024;  // few enough for L2

    // As many padded rows as the kernel has, and one of zeros.
    struct Ring {
        Ring(float* data_, index_t pixel_, const ExpandedDepthwiseStep& step)
            : data(data_), pixel(pixel_), rows(step.layer_.window.kernel_h), pitch(step.row_pixels_ * pixel_) {
            const index_t left = step.layer_.window.pad_left * pixel, right = left + step.in_.w * pixel;
            for (index_t i = 0; i < rows; ++i) {
                std::fill_n(row(i), left, 0.0f);
                std::fill(row(i) + right, row(i) + pitch, 0.0f);
            }
            std::fill_n(zeros(), pitch, 0.0f);
        }
        float* row(index_t y) const { return data + y % rows * pitch; }
        float* zeros() const { return data + rows * pitch; }

        float* data;
        index_t pixel, rows, pitch;  // floats between pixels and between rows
    };

    index_t ring_floats(index_t panels) const { return (layer_.window.kernel_h + 1) * row_pixels_ * panels * panel_; }

    // Of the global average pool: sums of each row, taken while it is in L1, so that bits depend on no cut.
    float* row_sums(index_t image, index_t row, const Wave& wave) const {
        return static_cast<float*>(wave.shared) + (image * out_.h + row) * layer_.out_channels;
    }

    static void add_row(const DepthwiseRowArgs& row, float* sums, const Wave& wave) {
        wave.fp32().pool_sum({.x = row.y,
                              .channels = row.channels,
                              .rows = 1,
                              .cols = row.width,
                              .stride_c = 1,
                              .stride_h = 0,
                              .stride_w = row.y_pixel,
                              .sums = sums,
                              .by_pixel = true});
    }

    void average(index_t image, const Wave& wave) const {
        const Tensor& y = wave.tensors[averaged_->output];
        wave.fp32().pool_mean({.sums = row_sums(image, 0, wave),
                               .parts = out_.h,
                               .part_stride = layer_.out_channels,
                               .channels = layer_.out_channels,
                               .pixels = out_.h * out_.w,
                               .y = y.at(image * y.image),
                               .stride_y = 1});
    }

    const ExpandedRows expanded_;
    const Layer* const averaged_;  // the global average pool that is computed as well, or null
    const index_t panel_;          // channels
    const index_t panels_;         // of an image
    index_t row_pixels_ = 1;       // of a padded row
    index_t bands_ = 1;            // of an image's rows
    index_t chunks_ = 1;           // of its panels
};

bool is_real(const StepContext& context, const Layer& layer) {
    return layer.kind == LayerKind::conv && !layer.is_int8() && layer.type == DType::fp32 &&
           context.buffer(layer.input).type == DType::fp32;
}

}  // namespace

bool can_expand(const StepContext& context, std::size_t expand, std::size_t depthwise) {
    const Layer &first = context.layers[expand], &second = context.layers[depthwise];
    if (!is_real(context, first) || !is_real(context, second) || second.input != first.output) return false;
    const bool by_channel = second.groups == second.in_channels && second.out_channels == second.in_channels;
    const bool widens = first.window.is_pointwise() && first.groups == 1 && first.in_channels < first.out_channels;
    if (!by_channel || !widens || first.residual >= 0 || second.window.is_dilated() ||
        second.window.kernel_h > kMostKernelRows)
        return false;
    const PlannedBuffer& between = context.buffer(first.output);
    // Rows that fill no register tile are better computed together.
    return context.buffer(first.input).dense && !between.is_view() && between.extent.w >= context.kernels().tile_rows;
}

std::unique_ptr<Step> make_expanded_depthwise_step(const StepContext& context, std::size_t expand,
                                                   std::size_t depthwise) {
    return std::make_unique<ExpandedDepthwiseStep>(context, depthwise, expand);
}

}  // namespace resfuse
