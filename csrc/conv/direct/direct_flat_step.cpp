// Direct convolution as one product over all pixels of the wave: linear layers and 1x1 convolutions as they lie in
// memory. Of other windows, where output rows are too short to fill a register tile, a task gathers a block of windows
// (of any images) in its scratch, one after the other, and multiplies them likewise; so it does with the pixels of 1x1
// convolutions whose elements are not what products read.
//
// Where global average pooling follows, a task takes whole images: it keeps the feature maps of one weight panel in
// cache and writes their means only.
#include <algorithm>

#include "conv/direct/direct_step.h"
#include "memory/arena.h"

namespace resfuse {

namespace {

class DirectFlatStep final : public DirectStep {
  public:
    DirectFlatStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm, bool gathered)
        : DirectStep(context, index, algorithm), gathered_(gathered), pools_(can_pool(context)) {
        const index_t rows = context.images * pixels();
        const index_t tile = units().tile_rows;
        // Every task on the same rows gathers their windows anew.
        const index_t each = gathered_ ? 1 : 4, wanted = each * context.threads;
        const bool streams_weights = rows < layer_.out_channels;
        // A residual of the same size passes through the caches with each output.
        const bool passes_much = layer_.residual >= 0 && !streams_weights && !gathered_ && !pools_;
        const index_t most = passes_much
                                 ? tiles_near(block_operands() / 2, reduction() + 2 * layer_.out_channels, tile, 2)
                                 : tiles_near(block_operands(), reduction(), tile, 4);
        if (streams_weights) {
            block_ = most * tile;
            // Weights are the larger operand: each should be read by one thread only.
            panel_chunks_ = std::min(grid_.total, wanted);
        } else {
            const index_t tiles = ceil_div(rows, tile * context.threads);
            block_ = even_part(tiles, std::min(most, ceil_div(tiles, each))) * tile;
            panel_chunks_ = std::clamp<index_t>(wanted / ceil_div(rows, block_), 1, grid_.total);
        }
        if (pools_) block_ = whole_images() * pixels();
        windows_ = gathered_ ? arena_round_up(operands_in_bytes(block_ * window_pitch() + operands_behind())) : 0;
        thread_scratch = windows_ + float_bytes(pools_ ? (block_ + 1) * grid_.tile_cols : 0);
        // As they lie in gathered windows.
        for (index_t run = 0; run < runs_.count; ++run) segments_.push_back(run * runs_.length);
        segment_length_ = runs_.padded;
        if (runs_.length == runs_.padded) {
            segments_ = {0};
            segment_length_ = reduction();
        }
    }

    bool pools() const override { return pools_; }

    index_t tasks(int stage, index_t images) const override {
        return stage == 1 ? images : blocks(images) * panel_chunks_;
    }

    void run(int stage, index_t task, const Wave& wave, void* scratch) const override {
        if (stage == 1) return softmax(task, wave);
        const Range panels = part(grid_.total, task % panel_chunks_, panel_chunks_);
        // Pooling wants whole images.
        const index_t unit = pools_ ? pixels() : 1;
        const Range block = part(wave.images * pixels() / unit, task / panel_chunks_, blocks(wave.images));
        multiply_block({block.begin * unit, block.end * unit}, panels, wave, static_cast<std::byte*>(scratch));
    }

  private:
    bool can_pool(const StepContext& context) const {
        return pooled_ && context.buffer(layer_.output).type == DType::fp32 &&
               layer_.activation != Activation::softmax && pooled_->kind == LayerKind::global_avg_pool &&
               pixels() * grid_.tile_cols <= kMostPooledFloats;
    }

    // Few enough register tiles of rows that some operands of each row stay near while all panels pass, enough that the
    // weights are not streamed too often.
    static index_t tiles_near(index_t operands, index_t row, index_t tile, index_t fewest) {
        return std::clamp(operands / row / tile, fewest, index_t{8});
    }

    // At most `most`, and such that `total` is a whole number of parts, unless that takes many more of them.
    static index_t even_part(index_t total, index_t most) {
        const index_t fewest = ceil_div(total, most);
        for (index_t parts = fewest; parts <= fewest + fewest / 2; ++parts)
            if (total % parts == 0) return total / parts;
        return ceil_div(total, fewest);
    }

    // As many images as come near the block of rows with the fewest rows missing in the last register tile.
    index_t whole_images() const {
        const index_t tile = units().tile_rows;
        const index_t most = std::clamp<index_t>(block_ / pixels(), 1, kMostPooledFloats / pixels() / grid_.tile_cols);
        const auto tiles_per_image = [&](index_t n) {
            return static_cast<double>(ceil_div(n * pixels(), tile)) / static_cast<double>(n);
        };
        index_t best = 1;
        for (index_t n = 2; n <= most; ++n)
            if (tiles_per_image(n) < tiles_per_image(best)) best = n;
        return best;
    }

    index_t window_pitch() const { return padded_row(reduction()); }

    index_t blocks(index_t images) const { return ceil_div(images * pixels(), block_); }

    void multiply_block(Range rows, Range panels, const Wave& wave, std::byte* scratch) const {
        const Tensor& x = wave.tensors[layer_.input];
        float* const maps = reinterpret_cast<float*>(scratch + windows_);
        if (gathered_) gather_rows(wave, rows, scratch, window_pitch());
        const Tensor& y = wave.tensors[layer_.output];
        for (index_t p = panels.begin; p < panels.end;) {
            // Pooling keeps the feature maps of one panel at a time.
            const Range chunk = pools_ ? Range{p, p + 1} : chunk_from(p, panels.end);
            GemmArgs g = panel_args(chunk, segments_, segment_length_, wave);
            g.a = gathered_ ? scratch : x.at(rows.begin * x.pixel);
            g.lda = gathered_ ? window_pitch() : x.pixel;
            g.rows = rows.size();
            g.c = pools_ ? maps : y.at(rows.begin * y.pixel + grid_.channel(p));
            g.ldc = pools_ ? grid_.tile_cols : y.pixel;
            const Residual residual = residual_from(wave, layer_, rows.begin, grid_.channel(p));
            g.residual = residual.data;
            g.ldr = residual.pixel;
            multiply(g, p, y.type, wave);
            if (pools_) pool(rows, maps, g.cols, grid_.channel(p), wave);
            p = chunk.end;
        }
    }

    // Means over the images that the product's rows are.
    void pool(Range rows, float* maps, index_t cols, index_t channel, const Wave& wave) const {
        const Tensor& y = wave.tensors[pooled_->output];
        float* const sums = maps + block_ * grid_.tile_cols;
        for (index_t row = 0; row < rows.size(); row += pixels())
            pool_pixels(wave.fp32(), wave.kernels_of(pooled_->output),
                        {maps + row * grid_.tile_cols, 1, pixels(), pixels() * grid_.tile_cols, grid_.tile_cols},
                        DType::fp32, 0, cols, sums, y.at((rows.begin + row) / pixels() * y.image + channel));
    }

    bool gathered_;
    bool pools_;
    index_t block_ = 1;        // rows of a task
    std::size_t windows_ = 0;  // bytes of gathered windows
    std::vector<index_t> segments_;
    index_t segment_length_ = 0;
    index_t panel_chunks_ = 1;  // parts that the panels are cut into
};

}  // namespace

std::unique_ptr<Step> make_direct_flat_step(const StepContext& context, std::size_t layer,
                                            const ConvAlgorithm& algorithm, bool gathered) {
    return std::make_unique<DirectFlatStep>(context, layer, algorithm, gathered);
}

}  // namespace resfuse
