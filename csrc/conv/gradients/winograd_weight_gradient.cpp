// Winograd's weight gradient: inputs and gradients are transformed into the domain where the convolution multiplies,
// tiles of the whole batch (or of a chunk of it) at once; there the gradient is one outer product for each frequency,
// with the tiles as the reduction. A task takes some channels by some panels through all frequencies and transforms
// their sums back. Where channels are few, each task takes all of them through its own part of the tiles. Chunks, parts
// and blocks depend on the sizes and the machine's caches alone.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "conv/gradients/weight_gradient.h"
#include "conv/winograd/winograd.h"
#include "machine/threads.h"
#include "memory/aligned.h"

namespace resfuse {

namespace {

constexpr index_t kChunkFloats = 4 << 20;  // of both operands
constexpr index_t kTransformTiles = 8;     // of a task
constexpr index_t kTaskPanels = 8;         // of a product, at most
constexpr index_t kLeastTasks = 8;
constexpr index_t kMostGroups = 4;   // of panels, each of which transforms the inputs anew
constexpr index_t kParts = 8;        // of the tiles, where channels are few
constexpr index_t kMostBlock = 128;  // tiles

class WinogradGradient {
  public:
    WinogradGradient(const KernelTable& kernels, const WeightGradient& g)
        : kernels_(kernels), g_(g), winograd_(winograd_f4_kernels(kernels)), channels_(g.layer.in_channels) {
        panels_ = ceil_div(g.layer.out_channels, kernels.tile_cols);
        rows_ = ceil_div(g.out.h, winograd_.tile);
        cols_ = ceil_div(g.out.w, winograd_.tile);
        frequencies_ = winograd_.points * winograd_.points;
        tiles_ = g.batch * rows_ * cols_;
        chunks_ = ceil_div(tiles_ * frequencies_ * (channels_ + width()), kChunkFloats);
        chunk_ = ceil_div(tiles_, chunks_);
        plan_parts();
        // About two register tiles of channels, and no more than a panel holds.
        channel_blocks_ = ceil_div(channels_, std::min<index_t>(2 * kernels.tile_rows, kernels.tile_cols));
        if (parts_ > 0) return;
        panel_blocks_ = ceil_div(panels_, kTaskPanels);
        while (channel_blocks_ * panel_blocks_ < kLeastTasks && panel_blocks_ < panels_) ++panel_blocks_;
    }

    void run(int threads) {
        const std::vector<float> zeros(static_cast<std::size_t>(channels_), 0.0f);
        zeros_ = zeros.data();
        if (parts_ > 0) {
            run_parts(threads);
        } else {
            run_chunks(threads);
        }
    }

  private:
    // Both operands of some tiles, [frequency][tile][channel] and [frequency][panel][tile][column].
    struct Operands {
        float *v, *grads;
        index_t capacity;  // tiles
    };

    index_t width() const { return panels_ * kernels_.tile_cols; }
    index_t operand_floats(index_t tiles) const { return frequencies_ * tiles * (channels_ + width()); }
    Operands operands(float* memory, index_t capacity) const {
        return {memory, memory + frequencies_ * capacity * channels_, capacity};
    }

    // Few channels: operands and sums of all of them, and of some panels, stay in a core's L2.
    void plan_parts() {
        const index_t l2 = static_cast<index_t>(cache_sizes().l2 / sizeof(float));
        for (index_t groups = 1; groups <= std::min(kMostGroups, panels_); ++groups) {
            const index_t cols = ceil_div(panels_, groups) * kernels_.tile_cols;
            const index_t sums = frequencies_ * channels_ * cols;
            const index_t fit = (l2 * 17 / 20 - sums) / (frequencies_ * (channels_ + cols));
            if (fit < kernels_.tile_rows || tiles_ < 4 * kParts * kernels_.tile_rows) continue;
            parts_ = kParts;
            panel_blocks_ = groups;
            block_ = std::min(fit, kMostBlock);
            return;
        }
    }

    // A task takes the tiles of one part block by block, for some of the panels.
    void run_parts(int threads) {
        const index_t sums = frequencies_ * channels_ * width(), own = operand_floats(block_);
        const AlignedFloats lease(static_cast<std::size_t>(parts_ * sums + threads * own));
        float* const totals = lease.data();
        float* const scratch = totals + parts_ * sums;
        // [part][panels of a task][frequency][channel][column]
        const auto begin = [&](index_t of, Range panels) {
            return totals + of * sums + frequencies_ * channels_ * panels.begin * kernels_.tile_cols;
        };
#pragma omp parallel num_threads(usable_threads(threads))
        {
            const FlushDenormals flush;
            const Operands block = operands(scratch + omp_get_thread_num() * own, block_);
#pragma omp for schedule(dynamic)
            for (index_t task = 0; task < parts_ * panel_blocks_; ++task) {
                const index_t of = task / panel_blocks_;
                const Range tiles = part(tiles_, of, parts_);
                const Range panels = part(panels_, task % panel_blocks_, panel_blocks_);
                for (index_t t = tiles.begin; t < tiles.end; t += block_) {
                    const Range some{t, std::min(t + block_, tiles.end)};
                    transform(some, t, panels, block);
                    multiply({0, channels_}, panels, some.size(), t > tiles.begin, block, nullptr, begin(of, panels));
                }
            }
#pragma omp for schedule(static)
            for (index_t i = 0; i < frequencies_ * channels_; ++i)
                for (index_t of = 1; of < parts_; ++of)
                    for (index_t k = 0; k < width(); ++k)
                        totals[i * width() + k] += totals[of * sums + i * width() + k];
#pragma omp for schedule(dynamic)
            for (index_t p = 0; p < panels_; ++p) {
                index_t group = 0;
                while (part(panels_, group, panel_blocks_).end <= p) ++group;
                const Range panels = part(panels_, group, panel_blocks_);
                const index_t cols = panels.size() * kernels_.tile_cols;
                finish({0, channels_}, {p, p + 1}, begin(0, panels) + (p - panels.begin) * kernels_.tile_cols,
                       channels_ * cols, cols);
            }
        }
    }

    void run_chunks(int threads) {
        const index_t block =
            frequencies_ * ceil_div(channels_, channel_blocks_) * ceil_div(panels_, panel_blocks_) * kernels_.tile_cols;
        const index_t blocks = channel_blocks_ * panel_blocks_;
        const index_t products = block * (chunks_ == 1 ? threads : blocks);
        const index_t slice = chunk_ * kernels_.tile_cols;
        const AlignedFloats lease(static_cast<std::size_t>(operand_floats(chunk_) + products + threads * slice));
        const Operands all = operands(lease.data(), chunk_);
        float* const sums = lease.data() + operand_floats(chunk_);
        float* const slices = sums + products;
#pragma omp parallel num_threads(usable_threads(threads))
        {
            const FlushDenormals flush;
            for (index_t chunk = 0; chunk < chunks_; ++chunk) {
                const Range tiles = part(tiles_, chunk, chunks_);
#pragma omp for schedule(dynamic)
                for (index_t t = tiles.begin; t < tiles.end; t += kTransformTiles)
                    transform({t, std::min(t + kTransformTiles, tiles.end)}, tiles.begin, {0, panels_}, all);
#pragma omp for schedule(dynamic)
                for (index_t task = 0; task < blocks; ++task) {
                    const Range channels = part(channels_, task / panel_blocks_, channel_blocks_);
                    const Range panels = part(panels_, task % panel_blocks_, panel_blocks_);
                    const index_t cols = panels.size() * kernels_.tile_cols;
                    float* const to = sums + block * (chunks_ == 1 ? omp_get_thread_num() : task);
                    multiply(channels, panels, tiles.size(), chunk > 0, all, slices + omp_get_thread_num() * slice, to);
                    if (chunk + 1 == chunks_) finish(channels, panels, to, channels.size() * cols, cols);
                }
            }
        }
    }

    // Tiles (of all images), where `to` begins with tile `first`; gradients of some panels.
    void transform(Range tiles, index_t first, Range panels, const Operands& to) const {
        const index_t channel = panels.begin * kernels_.tile_cols;
        const Window& w = g_.layer.window;
        const index_t per_image = rows_ * cols_;
        for (index_t t = tiles.begin; t < tiles.end;) {
            const index_t image = t / per_image, tile = t % per_image;
            const index_t count = std::min(tiles.end - t, per_image - tile);
            const WinogradTransforms& transforms = kernels_of(kernels_, g_.x.type).winograd[winograd_.number];
            transforms.input[0][0]({.image = image_view(g_.x, image, g_.in),
                                    .channels = channels_,
                                    .pad_top = w.pad_top,
                                    .pad_left = w.pad_left,
                                    .tiles_per_row = cols_,
                                    .first_tile = tile,
                                    .tiles = count,
                                    .v = to.v + (t - first) * channels_,
                                    .frequency_stride = to.capacity * channels_,
                                    .zeros = zeros_});
            ImageView grad = image_view(g_.grad, image, g_.out);
            grad.data = element_at(grad.data, channel, g_.grad.type);
            transforms.gradient(
                {.image = grad,
                 .channels = std::min(panels.size() * kernels_.tile_cols, g_.layer.out_channels - channel),
                 .tiles_per_row = cols_,
                 .first_tile = tile,
                 .tiles = count,
                 .panels = to.grads + channel * to.capacity + (t - first) * kernels_.tile_cols,
                 .frequency_stride = to.capacity * width(),
                 .panel_stride = to.capacity * kernels_.tile_cols});
            t += count;
        }
    }

    // `to` holds [frequency][channel][columns of the panels]; without a slice the channels are read in place.
    void multiply(Range channels, Range panels, index_t tiles, bool accumulate, const Operands& from, float* slice,
                  float* to) const {
        const index_t cols = panels.size() * kernels_.tile_cols;
        for (index_t f = 0; f < frequencies_; ++f) {
            const float* const v = from.v + f * from.capacity * channels_ + channels.begin;
            if (slice)
                kernels_of(kernels_, DType::fp32)
                    .pack_rows({.x = v,
                                .pixel = channels_,
                                .rows = tiles,
                                .channels = channels.size(),
                                .panels = slice,
                                .panel_stride = 0});
            kernels_.outer_product({.a = slice ? slice : v,
                                    .lda = slice ? kernels_.tile_cols : channels_,
                                    .b = from.grads + (f * panels_ + panels.begin) * from.capacity * kernels_.tile_cols,
                                    .b_panel = from.capacity * kernels_.tile_cols,
                                    .ldb = kernels_.tile_cols,
                                    .c = to + f * channels.size() * cols,
                                    .c_panel = kernels_.tile_cols,
                                    .ldc = cols,
                                    .rows = channels.size(),
                                    .panels = panels.size(),
                                    .steps = tiles,
                                    .accumulate = accumulate});
        }
    }

    void finish(Range channels, Range panels, const float* sums, index_t frequency_stride, index_t row) const {
        const auto [stride_k, stride_c, stride_h, stride_w] = g_.dw_strides;
        for (index_t p = panels.begin; p < panels.end; ++p) {
            const index_t k = p * kernels_.tile_cols;
            winograd_.weight_gradient({.products = sums + (p - panels.begin) * kernels_.tile_cols,
                                       .frequency_stride = frequency_stride,
                                       .product_row = row,
                                       .channels = channels.size(),
                                       .cols = std::min<index_t>(kernels_.tile_cols, g_.layer.out_channels - k),
                                       .dw = g_.dw + k * stride_k + channels.begin * stride_c,
                                       .stride_k = stride_k,
                                       .stride_c = stride_c,
                                       .stride_h = stride_h,
                                       .stride_w = stride_w});
        }
    }

    const KernelTable& kernels_;
    const WeightGradient& g_;
    const WinogradKernels& winograd_;
    index_t channels_, panels_;
    index_t rows_, cols_;  // of tiles of an image
    index_t frequencies_, tiles_, chunks_, chunk_;
    index_t channel_blocks_, panel_blocks_;
    index_t parts_ = 0, block_ = 0;  // 0: tiles go in chunks
    const float* zeros_ = nullptr;
};

}  // namespace

void winograd_weight_gradient(const KernelTable& kernels, const WeightGradient& g, int threads) {
    WinogradGradient(kernels, g).run(threads);
}

}  // namespace resfuse
