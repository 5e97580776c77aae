// Winograd convolution, blocked over tiles.
//
// fused: one stage; a task transforms a block of tiles into its own V, and panel by panel multiplies the frequencies
//        and transforms back, so V and M of a block stay in the core's L2. For many tiles and small weights.
// split: stage 0 transforms all tiles of the wave into one shared V; in stage 1 a task takes a group of weight panels
//        over a block of tiles, so the transformed weights are streamed once. For few tiles and large weights.
// Where global average pooling follows, blocks are whole images: the feature maps of one weight panel stay in cache and
// their means alone are written.
#include <algorithm>

#include "engine/cost.h"
#include "engine/step.h"

namespace resfuse {

namespace {

constexpr index_t kPad = 16;  // floats between frequencies, against cache-set conflicts

class WinogradStep final : public Step {
  public:
    WinogradStep(const StepContext& context, std::size_t index, Algorithm algorithm)
        : index_(index),
          layer_(context.layers[index]),
          algorithm_(algorithm),
          kernel_(algorithm == Algorithm::winograd_f2 ? 0 : 1),
          in_(context.extents[static_cast<std::size_t>(layer_.input)]),
          out_(context.extents[static_cast<std::size_t>(layer_.output)]),
          grid_(panel_grid(layer_, context.kernels())),
          tiles_(winograd_tiles(algorithm, out_)),
          blocking_(winograd_blocking(layer_, algorithm, context.images * tiles_.per_image, context.threads,
                                      context.kernels())),
          pooled_(context.averaged(index)),
          pools_(pooled_ && blocking_.block >= tiles_.per_image &&
                 out_.h * out_.w * grid_.tile_cols <= kMostPooledFloats) {
        if (pools_) blocking_.block = blocking_.block / tiles_.per_image * tiles_.per_image;
        const index_t m = blocking_.panel_group * tiles_.frequencies * m_frequency_stride();
        const index_t v = tiles_.frequencies * v_frequency_stride(context.images);
        if (blocking_.split) shared_scratch = static_cast<std::size_t>(v);
        map_ = blocking_.split ? m : m + v;
        const index_t map = pools_ ? (out_.h * out_.w + 1) * grid_.tile_cols : 0;
        thread_scratch = static_cast<std::size_t>(map_ + map);
    }

    bool pools() const override { return pools_; }

    int stages() const override { return blocking_.split ? 2 : 1; }

    index_t tasks(int stage, index_t images) const override {
        const index_t total = images * tiles_.per_image;
        if (blocking_.split && stage == 0) return ceil_div(total, kInputTiles);
        return blocks(total) * (blocking_.split ? panel_groups() : 1);
    }

    void run(int stage, index_t task, const Wave& wave, float* scratch) const override {
        const index_t total = wave.images * tiles_.per_image;
        const index_t stride = v_frequency_stride(wave.images);
        if (!blocking_.split) {
            const Range block = tiles_of_block(total, task);
            float* v = scratch + tiles_.frequencies * m_frequency_stride();
            transform_input(block, v, stride, wave);
            for (index_t p = 0; p < grid_.total; ++p) multiply({p, p + 1}, block, v, stride, wave, scratch);
        } else if (stage == 0) {
            const Range block = part(total, task, ceil_div(total, kInputTiles));
            transform_input(block, wave.shared + block.begin * layer_.in_channels, stride, wave);
        } else {
            const Range block = tiles_of_block(total, task / panel_groups());
            const Range panels = part(grid_.total, task % panel_groups(), panel_groups());
            multiply(panels, block, wave.shared + block.begin * layer_.in_channels, stride, wave, scratch);
        }
    }

  private:
    static constexpr index_t kInputTiles = 4;  // per task of the split form's first stage

    index_t blocks(index_t total) const { return ceil_div(total, blocking_.block); }
    Range tiles_of_block(index_t total, index_t i) const {
        const index_t unit = pools_ ? tiles_.per_image : 1;
        const Range range = part(total / unit, i, blocks(total));
        return {range.begin * unit, range.end * unit};
    }
    index_t panel_groups() const { return ceil_div(grid_.total, blocking_.panel_group); }
    index_t m_frequency_stride() const { return blocking_.block * grid_.tile_cols + kPad; }
    index_t v_frequency_stride(index_t images) const {
        return (blocking_.split ? images * tiles_.per_image : blocking_.block) * layer_.in_channels + kPad;
    }

    // Calls f(image, first tile in the image, tiles, offset in the block) for each image that the block touches.
    template <class F>
    void for_each_image(Range block, F f) const {
        for (index_t t = block.begin; t < block.end;) {
            const index_t image = t / tiles_.per_image, first = t % tiles_.per_image;
            const index_t count = std::min(tiles_.per_image - first, block.end - t);
            f(image, first, count, t - block.begin);
            t += count;
        }
    }

    void transform_input(Range block, float* v, index_t stride, const Wave& wave) const {
        for_each_image(block, [&](index_t image, index_t first, index_t count, index_t offset) {
            wave.kernels.winograd_input[kernel_]({.image = image_view(wave.tensors[layer_.input], image, in_),
                                                  .channels = layer_.in_channels,
                                                  .pad_top = layer_.window.pad_top,
                                                  .pad_left = layer_.window.pad_left,
                                                  .tiles_per_row = tiles_.per_row,
                                                  .first_tile = first,
                                                  .tiles = count,
                                                  .v = v + offset * layer_.in_channels,
                                                  .frequency_stride = stride,
                                                  .zeros = wave.zeros});
        });
    }

    // Frequency by frequency, V * U for a range of panels, then the output transform of each panel.
    void multiply(Range panels, Range block, const float* v, index_t stride, const Wave& wave, float* m) const {
        const index_t cols = grid_.tile_cols, depth = layer_.in_channels;
        const float* weights = wave.weights.packed(index_, algorithm_);
        const index_t zero_offset = 0;
        GemmArgs g{};
        g.lda = depth;
        g.segment_offset = &zero_offset;
        g.segments = 1;
        g.segment_length = depth;
        g.ldc = cols;
        g.rows = block.size();
        g.cols = cols;
        g.plain = true;
        g.chain = kernel_ == 1 ? wave.kernels.f4x4_chain : wave.kernels.chain;
        for (index_t p = panels.begin; p < panels.end; ++p)
            for (index_t f = 0; f < tiles_.frequencies; ++f) {
                g.a = v + f * stride;
                g.b = weights + (p * tiles_.frequencies + f) * depth * cols;
                g.c = m + ((p - panels.begin) * tiles_.frequencies + f) * m_frequency_stride();
                wave.kernels.gemm(g);
            }
        for (index_t p = panels.begin; p < panels.end; ++p)
            transform_output(p, block, m + (p - panels.begin) * tiles_.frequencies * m_frequency_stride(), m + map_,
                             wave);
    }

    void transform_output(index_t panel, Range block, const float* m, float* map, const Wave& wave) const {
        const index_t channel = panel * grid_.tile_cols;
        const index_t cols = std::min(grid_.tile_cols, layer_.out_channels - channel);
        const Tensor& y = wave.tensors[pools_ ? pooled_->output : layer_.output];
        for_each_image(block, [&](index_t image, index_t first, index_t count, index_t offset) {
            float* to = y.data + image * y.image + channel;
            const float* residual = nullptr;
            if (layer_.residual >= 0) {
                const Tensor& r = wave.tensors[layer_.residual];
                residual = r.data + image * r.image + channel;
            }
            wave.kernels.winograd_output[kernel_]({.m = m + offset * grid_.tile_cols,
                                                   .frequency_stride = m_frequency_stride(),
                                                   .tile_stride = grid_.tile_cols,
                                                   .y = pools_ ? map : to,
                                                   .height = out_.h,
                                                   .width = out_.w,
                                                   .pixel = pools_ ? grid_.tile_cols : y.pixel,
                                                   .residual_pixel = layer_.out_channels,
                                                   .cols = cols,
                                                   .tiles_per_row = tiles_.per_row,
                                                   .first_tile = first,
                                                   .tiles = count,
                                                   .bias = wave.weights.bias(index_) + channel,
                                                   .residual = residual,
                                                   .floor = activation_floor(layer_.activation)});
            if (pools_) {
                const index_t pixels = out_.h * out_.w;
                pool_pixels(wave.kernels, {map, 1, pixels, pixels * grid_.tile_cols, grid_.tile_cols}, 0, cols,
                            map + pixels * grid_.tile_cols, to);
            }
        });
    }

    std::size_t index_;
    const Layer& layer_;
    Algorithm algorithm_;
    int kernel_;
    Extent in_, out_;
    PanelGrid grid_;
    WinogradTiles tiles_;
    WinogradBlocking blocking_;
    const Layer* pooled_;  // the global average pool behind, or null
    bool pools_;
    index_t map_ = 0;  // offset of one panel's feature map, to be pooled, in the thread's scratch
};

}  // namespace

std::unique_ptr<Step> make_winograd_step(const StepContext& context, std::size_t layer, Algorithm algorithm) {
    return std::make_unique<WinogradStep>(context, layer, algorithm);
}

}  // namespace resfuse
