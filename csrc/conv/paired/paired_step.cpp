// Convolution by products in pairs of terms (kernels/gemm/paired_tile.h). Its rows are the pixels of a 1x1
// convolution, the windows of any other.
//
// by rows:   a task writes a block of rows, scaled and followed by their own sums, into its scratch, few enough that
//            they stay in L2, and multiplies all panels of weights with them.
// by panels: where rows are few, weights are the larger operand and should be read by one thread only. Of few threads a
//            task writes all rows and multiplies some panels; of many, stage 0 writes the rows into scratch that all
//            threads see, and in stage 1 a task takes some panels.
#include <algorithm>

#include "conv/conv_step.h"
#include "conv/cost.h"
#include "conv/paired/paired.h"

namespace resfuse {

namespace {

class PairedStep final : public ConvStep {
  public:
    PairedStep(const StepContext& context, std::size_t index)
        : ConvStep(context, index, paired()), pitch_(paired_pitch(grid_.reduction)) {
        const index_t total = context.images * pixels();
        constexpr index_t kFewTiles = 5;
        if (context.threads == 1 || total > kFewTiles * context.kernels().paired_tile_rows) {
            block_ = paired_block(layer_, total, context.threads, context.kernels());
        } else if (repeats_operands(context.threads)) {
            block_ = total;
            panel_parts_ = std::min<index_t>(context.threads, grid_.total);
        } else {
            shared_ = true;
            panel_parts_ = std::min<index_t>(4 * context.threads, grid_.total);
            shared_scratch = float_bytes(total * pitch_);
        }
        rows_ = block_ * pitch_;
        const index_t windows = layer_.is_one_by_one() ? 0 : kWindowsAtOnce * grid_.reduction;
        thread_scratch = float_bytes(rows_ + windows);
    }

    int stages() const override { return shared_ ? 2 : 1; }

    index_t tasks(int stage, index_t images) const override {
        if (shared_ && stage == 0) return ceil_div(images * pixels(), kRowsWritten);
        return blocks(images) * panel_parts_;
    }

    void run(int stage, index_t task, const Wave& wave, void* memory) const override {
        float *const scratch = static_cast<float*>(memory), *const shared = static_cast<float*>(wave.shared);
        const index_t total = wave.images * pixels();
        if (shared_ && stage == 0) {
            const Range rows = part(total, task, tasks(stage, wave.images));
            return write(rows, wave, shared + rows.begin * pitch_, scratch);
        }
        const Range rows = part(total, task / panel_parts_, blocks(wave.images));
        if (!shared_) write(rows, wave, scratch, scratch + rows_);
        multiply(rows, part(grid_.total, task % panel_parts_, panel_parts_), wave, shared_ ? shared : scratch);
    }

  private:
    static constexpr index_t kRowsWritten = 8;    // by a task that writes rows only
    static constexpr index_t kWindowsAtOnce = 4;  // that lie in cache until their rows are written

    index_t blocks(index_t images) const { return shared_ ? 1 : ceil_div(images * pixels(), block_); }

    BalancedWeights packed(const Wave& wave) const {
        return balanced_weights(paired().layout(layer_, wave.kernels), weights(wave));
    }

    // Of the pixels `rows` of the output, counted over all images.
    void write(Range rows, const Wave& wave, float* to, float* windows) const {
        const Tensor& x = wave.tensors[layer_.input];
        const bool flat = layer_.window.is_pointwise(), one_by_one = layer_.is_one_by_one();
        PairedRowsArgs r{.pixel = one_by_one ? layer_.window.stride_w * x.pixel : grid_.reduction,
                         .depth = grid_.reduction,
                         .step_scale = packed(wave).step_scale,
                         .to = to};
        for (index_t i = rows.begin; i < rows.end; i += r.rows, r.to += r.rows * pitch_) {
            const index_t left = rows.end - i;
            if (one_by_one) {  // of other strides than 1 row by row of the image
                r.x = one_by_one_input(layer_, x, out_, i);
                r.rows = flat ? left : std::min(left, out_.w - i % out_.w);
            } else {
                r.x = windows;
                r.rows = std::min(left, kWindowsAtOnce);
                gather_windows(wave, layer_, in_, out_, {i, i + r.rows}, windows, grid_.reduction);
            }
            (one_by_one ? reads(wave) : wave.fp32()).paired_rows(r);
        }
    }

    void multiply(Range rows, Range panels, const Wave& wave, const float* operands) const {
        const index_t column = panels.begin * grid_.tile_cols, no_offset = 0;
        const BalancedWeights weights = packed(wave);
        const Tensor& y = wave.tensors[layer_.output];
        GemmArgs g{};
        g.a = operands;
        g.lda = pitch_;
        g.segment_offset = &no_offset;
        g.segments = 1;
        g.segment_length = grid_.reduction;
        g.b = weights.panels + panels.begin * weights.panel;
        g.c = y.at(rows.begin * y.pixel + column);
        g.ldc = y.pixel;
        g.rows = rows.size();
        g.cols = grid_.cols(panels.begin, panels.size());
        g.scale = weights.scale + column;
        g.bias = bias(wave, column);
        g.floor = activation_floor(layer_.activation);
        const Residual residual = residual_from(wave, layer_, rows.begin, column);
        g.residual = residual.data;
        g.ldr = residual.pixel;
        writes(wave).paired_gemm(g);
    }

    index_t pitch_;            // of rows
    bool shared_ = false;      // whether rows lie in scratch that all threads see
    index_t block_ = 0;        // rows of a task that lie in its own
    index_t rows_;             // and their floats
    index_t panel_parts_ = 1;  // of all panels, a task each
};

}  // namespace

std::unique_ptr<Step> make_paired_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<PairedStep>(context, layer);
}

}  // namespace resfuse
