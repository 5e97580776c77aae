// 1x1 convolution by one level of Strassen's algorithm (kernels/strassen.h).
//
// Its rows are pairs of pixels that follow each other in an image; where an image has an odd number of them, the last
// pair's second pixel is zeros, and a task keeps to one image. A task writes the operands of a block of pairs into its
// scratch, few enough that they stay in L2, and multiplies all panels of weights with them. Pairs are the same whatever
// the blocks are, so results do not depend on the number of threads or on the other images.
#include <algorithm>

#include "engine/cost.h"
#include "engine/step.h"

namespace resfuse {

namespace {

constexpr index_t kMostPairs = 56;  // of a block: 7 sums for each panel pass through L1

class StrassenStep final : public Step {
  public:
    StrassenStep(const StepContext& context, std::size_t index)
        : index_(index),
          layer_(context.layers[index]),
          in_(context.extents[static_cast<std::size_t>(layer_.input)]),
          out_(context.extents[static_cast<std::size_t>(layer_.output)]),
          half_(layer_.in_channels / 2),
          in_pixel_(context.pixels[static_cast<std::size_t>(layer_.input)]),
          pixels_(out_.h * out_.w),
          lone_(pixels_ % 2 != 0),
          flat_(layer_.window.is_pointwise() && !lone_),
          copies_(!flat_ || spaced(2 * in_pixel_) != 2 * in_pixel_) {
        pitch_ = (copies_ ? 7 : 5) * half_ + kLineFloats;
        blocks_ = best_blocks(context);
        block_ = ceil_div(pairs(context.images), blocks_);
        thread_scratch = static_cast<std::size_t>(block_ * pitch_);
    }

    index_t tasks(int, index_t images) const override {
        return lone_ ? images * blocks_ : ceil_div(pairs(images), block_);
    }

    void run(int, index_t task, const Wave& wave, float* scratch) const override {
        const index_t image = lone_ ? task / blocks_ : 0;
        const Range block =
            lone_ ? part(pairs(1), task % blocks_, blocks_) : part(pairs(wave.images), task, tasks(0, wave.images));
        const index_t first = image * pixels_ + 2 * block.begin;
        const bool lone = lone_ && block.end == pairs(1);
        write_operands(first, block.size(), lone, wave, scratch);

        const index_t channels = layer_.out_channels;
        const Tensor& y = wave.tensors[layer_.output];
        const float* const packed = wave.weights.packed(index_, Algorithm::strassen);
        StrassenProductsArgs s{};
        s.operands = scratch;
        s.pitch = pitch_;
        s.first_half = copies_ ? scratch + 5 * half_ : input(first, wave);
        s.second_half = copies_ ? scratch + 6 * half_ : input(first + 1, wave) + half_;
        s.pair = copies_ ? pitch_ : 2 * in_pixel_;
        s.half = half_;
        s.pairs = block.size();
        s.lone = lone;
        s.weights = packed;
        s.panels = channels / 2 / wave.kernels.tile_cols;
        s.chunk = gemm_chunk(wave.kernels);
        s.c = y.data + first * y.pixel;
        s.pixel = y.pixel;
        if (layer_.residual >= 0) {
            const Tensor& residual = wave.tensors[layer_.residual];
            s.residual = residual.data + first * residual.pixel;
            s.residual_pixel = residual.pixel;
        }
        s.right = channels / 2;
        s.scale = strassen_scale(layer_, wave.kernels, packed);
        s.bias = wave.weights.bias(index_);
        s.floor = activation_floor(layer_.activation);
        if (!copies_ && block.end < pairs(wave.images)) s.next = input(first + 2 * block.size(), wave);
        wave.kernels.strassen_products(s);
    }

  private:
    // Of the runs that blocks are parts of: all images, or one of them.
    index_t pairs(index_t images) const { return lone_ ? pixels_ / 2 + 1 : images * pixels_ / 2; }

    // As many blocks of a run as make the fewest register tiles, each thread the same number of blocks if it can be.
    index_t best_blocks(const StepContext& context) const {
        const index_t tile = context.kernels().tile_rows, total = pairs(context.images);
        // The pairs to come, their own pixels and the weights pass through L2 as well.
        const index_t fit = static_cast<index_t>(cache_sizes().l2 / 5 / sizeof(float)) / (7 * half_);
        const index_t most = std::clamp<index_t>(fit / tile, 2, kMostPairs / tile);
        const index_t fewest = ceil_div(total, most * tile);
        const index_t runs = lone_ ? context.images : 1;
        const index_t step = runs % context.threads == 0 ? 1 : context.threads;
        index_t best = 0, best_tiles = 0;
        for (index_t blocks = ceil_div(fewest, step) * step; blocks <= 3 * fewest / 2 + step; blocks += step) {
            const index_t tiles = blocks * ceil_div(ceil_div(total, blocks), tile);
            if (best == 0 || tiles < best_tiles) best = blocks, best_tiles = tiles;
        }
        return std::min(best, total);
    }

    // Pixel `i` of the output, counted over all images, reads this one.
    const float* input(index_t i, const Wave& wave) const {
        const Tensor& x = wave.tensors[layer_.input];
        if (layer_.window.is_pointwise()) return x.data + i * x.pixel;
        const index_t pixel = i % pixels_;
        return x.data + i / pixels_ * x.image + pixel / out_.w * layer_.window.stride_h * x.row +
               pixel % out_.w * layer_.window.stride_w * x.pixel;
    }

    void write_operands(index_t first, index_t pairs, bool lone, const Wave& wave, float* to) const {
        StrassenOperandsArgs s{.first = input(first, wave),
                               .second = input(first + 1, wave),
                               .pair = 2 * in_pixel_,
                               .pairs = pairs,
                               .half = half_,
                               .copies = copies_,
                               .to = to,
                               .pitch = pitch_};
        if (flat_) return wave.kernels.strassen_operands(s);
        s.pairs = 1;
        for (index_t i = 0; i < pairs; ++i, s.to += pitch_) {
            s.first = input(first + 2 * i, wave);
            s.second = lone && i + 1 == pairs ? wave.zeros : input(first + 2 * i + 1, wave);
            wave.kernels.strassen_operands(s);
        }
    }

    std::size_t index_;
    const Layer& layer_;
    Extent in_, out_;
    index_t half_;      // of the input's channels
    index_t in_pixel_;  // floats between the input's pixels
    index_t pixels_;    // of an image of the output
    bool lone_;         // the last pixel has no partner
    bool flat_;         // pairs lie one after the other
    bool copies_;       // products read copies of the pixels
    index_t pitch_ = 0;
    index_t blocks_ = 1, block_ = 1;
};

}  // namespace

std::unique_ptr<Step> make_strassen_step(const StepContext& context, std::size_t layer) {
    return std::make_unique<StrassenStep>(context, layer);
}

}  // namespace resfuse
