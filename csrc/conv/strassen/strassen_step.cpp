// 1x1 convolution by one level of Strassen's algorithm (kernels/strassen/strassen.h).
//
// Its rows are pairs of pixels that follow each other in an image; where an image has an odd number of them, the last
// pair's second pixel is zeros, and a task keeps to one image. Pairs are the same whatever the blocks are, so results
// do not depend on the number of threads or on the other images.
//
// by pairs:  a task writes the operands of a block of pairs into its scratch, few enough that they stay in L2, and
//            multiplies all panels of weights with them.
// by panels: where pairs are few, weights are the larger operand and should be read by one thread only. Stage 0 writes
//            the operands into scratch that all threads see; in stage 1 a task takes some panels.
#include <algorithm>
#include <numeric>

#include "conv/conv_step.h"
#include "conv/cost.h"
#include "conv/strassen/strassen.h"

namespace resfuse {

namespace {

class StrassenStep final : public ConvStep {
  public:
    StrassenStep(const StepContext& context, std::size_t index)
        : ConvStep(context, index, strassen()),
          half_(layer_.in_channels / 2),
          in_pixel_(context.buffer(layer_.input).pixel),
          lone_(pixels() % 2 != 0),
          flat_(layer_.window.is_pointwise() && !lone_),
          pitch_(kStrassenProducts * half_ + kLineFloats) {
        block_ = ceil_div(pairs(context.images), best_blocks(context));
        const index_t total = runs(context.images) * pairs(context.images);
        const index_t few = std::min(fewest_pairs(context) * std::max(context.threads / 2, 1), kMostStrassenPairs);
        if (context.threads > 1 && total <= few) {
            by_panels_ = true;
            panel_parts_ = std::min<index_t>(4 * context.threads, panels(context.kernels()));
            shared_scratch = float_bytes(total * pitch_);
        } else {
            thread_scratch = float_bytes(block_ * pitch_);
        }
    }

    int stages() const override { return by_panels_ ? 2 : 1; }

    index_t tasks(int stage, index_t images) const override { return runs(images) * tasks_of_run(stage, images); }

    void run(int stage, index_t task, const Wave& wave, void* memory) const override {
        float* const scratch = static_cast<float*>(memory);
        const index_t per_run = tasks_of_run(stage, wave.images), run = task / per_run, i = task % per_run;
        const index_t all_pairs = pairs(wave.images), all_panels = panels(wave.kernels);
        float* const shared = static_cast<float*>(wave.shared) + run * all_pairs * pitch_;
        if (by_panels_ && stage == 1)
            return multiply({run, {0, all_pairs}}, part(all_panels, i, per_run), wave, shared);
        const Pairs some{run, part(all_pairs, i, per_run)};
        if (by_panels_) return write_operands(some, wave, shared + some.range.begin * pitch_);
        write_operands(some, wave, scratch);
        multiply(some, {0, all_panels}, wave, scratch);
    }

  private:
    static constexpr index_t kOperandPairs = 4;  // of a task that writes operands only
    static constexpr index_t kLongestSum = 160;  // the products' errors are magnified

    // Some pairs of a run: of all images, or of one.
    struct Pairs {
        index_t run;
        Range range;
    };
    index_t runs(index_t images) const { return lone_ ? images : 1; }
    index_t pairs(index_t images) const { return lone_ ? pixels() / 2 + 1 : images * pixels() / 2; }

    index_t tasks_of_run(int stage, index_t images) const {
        if (!by_panels_) return ceil_div(pairs(images), block_);
        return stage == 0 ? ceil_div(pairs(images), kOperandPairs) : panel_parts_;
    }

    // Of a block, so that weights do not stream too often.
    static index_t fewest_pairs(const StepContext& context) {
        return kFewestStrassenTiles * context.kernels().tile_rows;
    }

    // As many blocks of a run as make the fewest register tiles, each thread the same number of blocks if that takes no
    // smaller ones than weights allow.
    index_t best_blocks(const StepContext& context) const {
        const index_t tile = context.kernels().tile_rows, total = pairs(context.images);
        const index_t fewest = ceil_div(total, strassen_block(layer_, context.kernels()));
        const index_t all = runs(context.images), even = context.threads / std::gcd<index_t>(all, context.threads);
        const index_t step = all > 1 && even * fewest_pairs(context) > total ? 1 : even;
        index_t best = 0, best_tiles = 0;
        for (index_t blocks = ceil_div(fewest, step) * step; blocks <= 3 * fewest / 2 + step; blocks += step) {
            const index_t tiles = blocks * ceil_div(ceil_div(total, blocks), tile);
            if (best == 0 || tiles < best_tiles) best = blocks, best_tiles = tiles;
        }
        return std::min(best, total);
    }

    // Pixel `i` of the output, counted over all images, reads this one.
    const void* input(index_t i, const Wave& wave) const {
        return one_by_one_input(layer_, wave.tensors[layer_.input], out_, i);
    }

    // The first of some pairs' pixels, counted over all images.
    index_t first_pixel(const Pairs& some) const { return some.run * pixels() + 2 * some.range.begin; }

    // Whether their last pair has one pixel only.
    bool ends_alone(const Pairs& some) const { return lone_ && some.range.end == pairs(1); }

    index_t panels(const KernelTable& kernels) const { return layer_.out_channels / 2 / kernels.tile_cols; }

    BalancedWeights packed(const Wave& wave) const {
        return balanced_weights(strassen().layout(layer_, wave.kernels), weights(wave));
    }

    void write_operands(const Pairs& some, const Wave& wave, float* to) const {
        const index_t first = first_pixel(some), count = some.range.size();
        StrassenOperandsArgs s{.first = input(first, wave),
                               .second = input(first + 1, wave),
                               .pair = 2 * in_pixel_,
                               .pairs = count,
                               .half = half_,
                               .channel_scale = packed(wave).step_scale,
                               .to = to,
                               .pitch = pitch_};
        if (flat_) return reads(wave).strassen_operands(s);
        s.pairs = 1;
        for (index_t i = 0; i < count; ++i, s.to += pitch_) {
            s.first = input(first + 2 * i, wave);
            s.second = ends_alone(some) && i + 1 == count ? wave.zeros : input(first + 2 * i + 1, wave);
            reads(wave).strassen_operands(s);
        }
    }

    void multiply(const Pairs& block, Range panels, const Wave& wave, const float* operands) const {
        const index_t first = first_pixel(block), end = first + 2 * block.range.size();
        const index_t half_out = layer_.out_channels / 2, column = panels.begin * wave.kernels.tile_cols;
        const Tensor& y = wave.tensors[layer_.output];
        const BalancedWeights weights = packed(wave);
        StrassenProductsArgs s{};
        s.operands = operands;
        s.pitch = pitch_;
        s.half = half_;
        s.pairs = block.range.size();
        s.lone = ends_alone(block);
        s.weights = weights.panels + panels.begin * weights.panel;
        s.panels = panels.size();
        s.chunk = std::min(gemm_chunk(wave.kernels), kLongestSum);
        s.c = y.at(first * y.pixel + column);
        s.pixel = y.pixel;
        const Residual residual = residual_from(wave, layer_, first, column);
        s.residual = residual.data;
        s.residual_pixel = residual.pixel;
        s.right = half_out;
        s.scale = weights.scale + column;
        s.bias = bias(wave, column);
        s.floor = activation_floor(layer_.activation);
        if (flat_ && end < wave.images * pixels()) s.next = input(end, wave);
        s.next_pair = 2 * in_pixel_;
        writes(wave).strassen_products(s);
    }

    index_t half_;      // of the input's channels
    index_t in_pixel_;  // floats between the input's pixels
    bool lone_;         // the last pixel has no partner
    bool flat_;         // pairs lie one after the other
    index_t pitch_;     // between pairs' operands
    index_t block_ = 1;
    bool by_panels_ = false;
    index_t panel_parts_ = 1;
};

}  // namespace

std::unique_ptr<Step> make_strassen_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<StrassenStep>(context, layer);
}

}  // namespace resfuse
