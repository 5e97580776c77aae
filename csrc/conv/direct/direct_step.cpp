// Direct convolution as an implicit GEMM, and linear layers and 1x1 convolutions as plain ones.
//
// flat: a pointwise layer is one matrix product over all pixels of the wave.
// rows: each output row is a product whose A rows lie stride_w pixels apart. Where there is padding, or the input is
//       not dense NHWC, a task first copies the input rows that it needs into a zero-padded band in cache; of groups,
//       the channels of a few at a time.
// gathered: where output rows are too short to fill a register tile, a task writes out the windows of a block of pixels
//       (of any images) one after the other, and multiplies them as in flat.
// by pairs: stems transform the rows of their band and take 9 instead of 14 products for two outputs of a row
//       (kernels/winograd/winograd_rows.h); all else is as in the rows form.
// Where max-pooling follows, the rows form pools its rows while they are in cache.
// Where global average pooling follows, a task of the flat and the gathered form takes whole images: it keeps the
// feature maps of one weight panel in cache and writes their means only.
#include <algorithm>

#include "conv/cost.h"
#include "conv/direct/direct.h"
#include "weights/weights.h"

namespace resfuse {

namespace {

class DirectStep final : public Step {
  public:
    DirectStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm)
        : index_(index),
          algorithm_(algorithm),
          layer_(context.layers[index]),
          in_(context.extents[static_cast<std::size_t>(layer_.input)]),
          out_(context.extents[static_cast<std::size_t>(layer_.output)]),
          grid_(panel_grid(layer_, context.kernels())),
          flat_(layer_.window.is_pointwise() && layer_.groups == 1 &&
                context.dense[static_cast<std::size_t>(layer_.input)]),
          by_pairs_(&algorithm == &winograd_rows()),
          gathered_(!flat_ && !by_pairs_ && gathers(context)),
          band_(!flat_ && !gathered_ &&
                (by_pairs_ || layer_.window.has_padding() || !context.dense[static_cast<std::size_t>(layer_.input)])),
          pooled_(context.pooled[index]),
          pools_(can_pool()) {
        const Window& w = layer_.window;
        band_cols_ = (out_.w - 1) * w.stride_w + (w.kernel_w - 1) * w.dilation_w + 1;
        if (by_pairs_) band_cols_ = 4 * pairs() + 5;
        groups_at_once_ =
            band_ ? std::clamp<index_t>(kBandChannels / layer_.group_in(), 1, layer_.groups) : layer_.groups;
        // Groups read a part of each pixel; all others read rows of pixels in one piece.
        const index_t band_pixel = layer_.groups > 1 ? spaced(groups_at_once_ * layer_.group_in()) : layer_.in_channels;
        pixel_ = band_ ? band_pixel : context.pixels[static_cast<std::size_t>(layer_.input)];
        pitch_ = (band_ ? band_cols_ : in_.w) * pixel_;
        set_segments();
        if (flat_ || gathered_) {
            plan_flat(context);
        } else {
            plan_rows(context);
        }
        if (pools_ && pooled_->kind == LayerKind::max_pool) plan_max_pool(context);
    }

    bool pools() const override { return pools_; }

    int stages() const override { return layer_.activation == Activation::softmax ? 2 : 1; }

    index_t tasks(int stage, index_t images) const override {
        if (stage == 1) return images;
        if (max_pools()) return images * bands_;
        return flat_ || gathered_ ? row_blocks(images) * panel_chunks_ : images * bands_ * panel_chunks_;
    }

    void run(int stage, index_t task, const Wave& wave, float* scratch) const override {
        if (stage == 1) return softmax(task, wave);
        if (max_pools()) return run_max_pool(task / bands_, part(pooled_out_.h, task % bands_, bands_), wave, scratch);
        const Range panels = part(grid_.total, task % panel_chunks_, panel_chunks_);
        if (flat_ || gathered_) {
            // Pooling wants whole images.
            const index_t unit = pools_ ? pixels() : 1;
            const Range block = part(wave.images * pixels() / unit, task / panel_chunks_, row_blocks(wave.images));
            run_flat({block.begin * unit, block.end * unit}, panels, wave, scratch);
        } else {
            const index_t band = task / panel_chunks_, image = band / bands_;
            const Range rows = part(out_.h, band % bands_, bands_);
            const Tensor& y = wave.tensors[layer_.output];
            run_rows(image, rows, panels, wave, scratch, y.data + image * y.image + rows.begin * y.row, y.pixel);
        }
    }

  private:
    static constexpr index_t kBlockFloats = 128 * 1024;  // of A that a task keeps in L2
    static constexpr index_t kBandChannels = 64;         // of groups, that a band holds
    static constexpr index_t kChunkFloats = 96 * 1024;   // of weights that stay there while rows pass by

    bool max_pools() const { return pools_ && pooled_->kind == LayerKind::max_pool; }

    bool can_pool() const {
        if (!pooled_ || layer_.activation == Activation::softmax) return false;
        const bool by_rows = !flat_ && !gathered_;
        if (pooled_->kind == LayerKind::global_avg_pool)
            return !by_rows && out_.h * out_.w * grid_.tile_cols <= kMostPooledFloats;
        const Window& w = pooled_->window;
        return by_rows && w.stride_h <= w.kernel_h && w.dilation_h == 1 && w.kernel_h * map_row() <= kMostPooledFloats;
    }

    bool gathers(const StepContext& context) const {
        return layer_.groups == 1 && !layer_.window.is_dilated() && 2 * out_.w <= context.kernels().tile_rows &&
               context.dense[static_cast<std::size_t>(layer_.input)];
    }

    void set_segments() {
        const Window& w = layer_.window;
        const index_t channels = layer_.in_channels;
        if (gathered_) {
            segment_length_ = grid_.reduction;
            segments_.push_back(0);
            return;
        }
        if (layer_.groups == 1 && w.dilation_w == 1 && (w.kernel_w == 1 || pixel_ == channels)) {
            segment_length_ = w.kernel_w * channels;
            for (index_t r = 0; r < w.kernel_h; ++r) segments_.push_back(r * w.dilation_h * pitch_);
            return;
        }
        segment_length_ = layer_.group_in();
        for (index_t r = 0; r < w.kernel_h; ++r)
            for (index_t s = 0; s < w.kernel_w; ++s)
                segments_.push_back(r * w.dilation_h * pitch_ + s * w.dilation_w * pixel_);
    }

    void plan_flat(const StepContext& context) {
        const index_t rows = context.images * pixels();
        const index_t tile = context.kernels().tile_rows;
        // Every task on the same rows gathers their windows anew.
        const index_t each = gathered_ ? 1 : 4, wanted = each * context.threads;
        const bool streams_weights = rows < layer_.out_channels;
        // A residual of the same size passes through the caches with each output.
        const bool passes_much = layer_.residual >= 0 && !streams_weights && !gathered_ && !pools_;
        const index_t most = passes_much
                                 ? tiles_near(kBlockFloats / 2, grid_.reduction + 2 * layer_.out_channels, tile, 2)
                                 : tiles_near(kBlockFloats, grid_.reduction, tile, 4);
        if (streams_weights) {
            block_ = most * tile;
            // Weights are the larger operand: each should be read by one thread only.
            panel_chunks_ = std::min(grid_.total, wanted);
        } else {
            const index_t tiles = ceil_div(rows, tile * context.threads);
            block_ = even_part(tiles, std::min(most, ceil_div(tiles, each))) * tile;
            panel_chunks_ = std::clamp<index_t>(wanted / ceil_div(rows, block_), 1, grid_.total);
        }
        if (pools_) block_ = whole_images(context) * pixels();
        windows_ = gathered_ ? block_ * window_pitch() : 0;
        thread_scratch = static_cast<std::size_t>(windows_ + (pools_ ? (block_ + 1) * grid_.tile_cols : 0));
    }

    // Few enough register tiles of rows that some floats of each row stay near while all panels pass, enough that the
    // weights are not streamed too often.
    static index_t tiles_near(index_t floats, index_t row, index_t tile, index_t fewest) {
        return std::clamp(floats / row / tile, fewest, index_t{8});
    }

    // At most `most`, and such that `total` is a whole number of parts, unless that takes many more of them.
    static index_t even_part(index_t total, index_t most) {
        const index_t fewest = ceil_div(total, most);
        for (index_t parts = fewest; parts <= fewest + fewest / 2; ++parts)
            if (total % parts == 0) return total / parts;
        return ceil_div(total, fewest);
    }

    // As many images as come near the block of rows with the fewest rows missing in the last register tile.
    index_t whole_images(const StepContext& context) const {
        const index_t tile = context.kernels().tile_rows;
        const index_t most = std::clamp<index_t>(block_ / pixels(), 1, kMostPooledFloats / pixels() / grid_.tile_cols);
        const auto tiles_per_image = [&](index_t n) {
            return static_cast<double>(ceil_div(n * pixels(), tile)) / static_cast<double>(n);
        };
        index_t best = 1;
        for (index_t n = 2; n <= most; ++n)
            if (tiles_per_image(n) < tiles_per_image(best)) best = n;
        return best;
    }

    index_t window_pitch() const { return spaced(grid_.reduction); }

    index_t pixels() const { return out_.h * out_.w; }

    void plan_rows(const StepContext& context) {
        const Window& w = layer_.window;
        // Of the band, and by pairs of its transformed rows.
        const index_t transformed = by_pairs_ ? kRowProducts * pairs() : 0;
        const index_t row_floats = w.stride_h * (band_cols_ + transformed) * groups_at_once_ * layer_.group_in();
        const index_t most_rows = std::max<index_t>(1, kBlockFloats / row_floats);
        bands_ = ceil_div(out_.h, most_rows);
        const index_t wanted = 4 * context.threads;
        if (context.images * bands_ < wanted) {
            // Groups have nothing in common; bands read the rows between them twice.
            if (layer_.groups >= wanted || grid_.reduction * layer_.out_channels > kBlockFloats) {
                // Each thread a band, whose pixels are in its caches.
                if (layer_.groups > 1)
                    bands_ = std::max(bands_, std::min(out_.h, ceil_div(context.threads, context.images)));
                panel_chunks_ = std::min(grid_.total, ceil_div(wanted, context.images * bands_));
            } else {
                bands_ = std::min(out_.h, ceil_div(wanted, context.images));
            }
        }
        if (band_) thread_scratch = static_cast<std::size_t>(plan_band(ceil_div(out_.h, bands_)));
    }

    // A task takes a band of the max-pool's rows, in steps of a few. The rows of this layer that a step computes lie in
    // scratch behind the copied input; those that the next step's windows share with it move to the front.
    void plan_max_pool(const StepContext& context) {
        const Window& w = pooled_->window;
        pooled_out_ = context.extents[static_cast<std::size_t>(pooled_->output)];
        pool_rows_ = std::max<index_t>(1, (kMostPooledFloats / map_row() - w.kernel_h) / w.stride_h + 1);
        // Rows between two bands are computed twice.
        bands_ = std::clamp<index_t>(2 * context.threads / context.images, 1, pooled_out_.h);
        panel_chunks_ = 1;
        const index_t rows = std::min((pool_rows_ - 1) * w.stride_h + w.kernel_h, out_.h);
        map_ = band_ ? plan_band(rows) : 0;
        thread_scratch = static_cast<std::size_t>(map_ + rows * map_row());
    }

    // Floats of the band of so many output rows, and of what is made of it.
    index_t plan_band(index_t out_rows) {
        const index_t band = band_rows(out_rows) * pitch_;
        if (!by_pairs_) return band;
        // A vector behind each end, which the transform may read or write.
        v_pitch_ = band_rows(out_rows) * 2 * layer_.in_channels + kLineFloats;
        infinity_pitch_ = band_rows(out_rows) * layer_.in_channels + kLineFloats;
        v_ = band + kLineFloats;
        infinity_ = v_ + (kRowFrequencies - 1) * pairs() * v_pitch_;
        m_ = infinity_ + pairs() * infinity_pitch_;
        return m_ + kRowFrequencies * m_frequency();
    }

    // By pairs.
    index_t pairs() const { return ceil_div(out_.w, 2); }
    index_t m_frequency() const { return pairs() * grid_.tile_cols; }

    index_t map_row() const { return out_.w * layer_.out_channels; }

    index_t row_blocks(index_t images) const { return ceil_div(images * pixels(), block_); }

    index_t band_rows(index_t out_rows) const {
        const Window& w = layer_.window;
        return (out_rows - 1) * w.stride_h + (w.kernel_h - 1) * w.dilation_h + 1;
    }

    // The next few panels of one group, as even in number as can be, whose weights fit well into L2; pooling
    // keeps the feature maps of one panel at a time.
    Range chunk_from(index_t panel, index_t end) const {
        if (pools_ && !max_pools()) return {panel, panel + 1};
        const index_t fit = std::max<index_t>(kChunkFloats / (grid_.reduction * grid_.tile_cols), 1);
        const index_t left = std::min(end, (panel / grid_.per_group + 1) * grid_.per_group) - panel;
        return {panel, panel + ceil_div(left, ceil_div(left, fit))};
    }

    // The parts of a product that do not depend on where its rows are. Panels of one group.
    GemmArgs panel_args(Range panels, const Wave& wave) const {
        const index_t panel = panels.begin;
        GemmArgs g{};
        g.segment_offset = segments_.data();
        g.segments = static_cast<index_t>(segments_.size());
        g.segment_length = segment_length_;
        g.chunk = gemm_chunk(wave.kernels);
        g.b = wave.weights.packed(index_, algorithm_) + panel * grid_.reduction * grid_.tile_cols;
        g.cols = grid_.cols(panel, panels.size());
        g.scale = wave.weights.scale(index_) + panel * grid_.tile_cols;
        g.bias = wave.weights.bias(index_) + panel * grid_.tile_cols;
        g.floor = activation_floor(layer_.activation);
        return g;
    }

    void multiply(GemmArgs& g, const Wave& wave) const {
        wave.kernels.gemm(g);
        if (is_by_element(layer_.activation))
            for (index_t i = 0; i < g.rows; ++i)
                wave.kernels.activate({layer_.activation, layer_.slope}, g.c + i * g.ldc, g.cols);
    }

    void run_flat(Range rows, Range panels, const Wave& wave, float* scratch) const {
        const Tensor& x = wave.tensors[layer_.input];
        if (gathered_) gather_windows(wave, layer_, in_, out_, rows, scratch, window_pitch());
        const Tensor& y = wave.tensors[layer_.output];
        for (index_t p = panels.begin; p < panels.end;) {
            const Range chunk = chunk_from(p, panels.end);
            GemmArgs g = panel_args(chunk, wave);
            g.a = gathered_ ? scratch : x.data + rows.begin * x.pixel;
            g.lda = gathered_ ? window_pitch() : x.pixel;
            g.rows = rows.size();
            g.c = pools_ ? scratch + windows_ : y.data + rows.begin * y.pixel + grid_.channel(p);
            g.ldc = pools_ ? grid_.tile_cols : y.pixel;
            const Residual residual = residual_from(wave, layer_, rows.begin, grid_.channel(p));
            g.residual = residual.data;
            g.ldr = residual.pixel;
            multiply(g, wave);
            if (pools_) pool(rows, g, grid_.channel(p), wave);
            p = chunk.end;
        }
    }

    // Means over the images that the product's rows are.
    void pool(Range rows, const GemmArgs& g, index_t channel, const Wave& wave) const {
        const Tensor& y = wave.tensors[pooled_->output];
        float* sums = g.c + block_ * g.ldc;
        for (index_t row = 0; row < rows.size(); row += pixels())
            pool_pixels(wave.kernels, {g.c + row * g.ldc, 1, pixels(), pixels() * g.ldc, g.ldc}, 0, g.cols, sums,
                        y.data + (rows.begin + row) / pixels() * y.image + channel);
    }

    void softmax(index_t image, const Wave& wave) const {
        const Tensor& y = wave.tensors[layer_.output];
        for (index_t pixel = 0; pixel < pixels(); ++pixel)
            wave.kernels.activate({Activation::softmax, 0.0f}, y.data + image * y.image + pixel * y.pixel,
                                  layer_.out_channels);
    }

    void run_max_pool(index_t image, Range pool_rows, const Wave& wave, float* scratch) const {
        const Window& w = pooled_->window;
        const Tensor& y = wave.tensors[pooled_->output];
        float* const map = scratch + map_;
        Range held{0, 0};  // rows of this layer in the map
        for (index_t row = pool_rows.begin; row < pool_rows.end; row += pool_rows_) {
            const Range step{row, std::min(row + pool_rows_, pool_rows.end)};
            const Range rows{std::max<index_t>(step.begin * w.stride_h - w.pad_top, 0),
                             std::min((step.end - 1) * w.stride_h - w.pad_top + w.kernel_h, out_.h)};
            const index_t kept = std::max<index_t>(held.end - rows.begin, 0);
            std::copy_n(map + (held.size() - kept) * map_row(), kept * map_row(), map);
            if (rows.begin + kept < rows.end)
                run_rows(image, {rows.begin + kept, rows.end}, {0, grid_.total}, wave, scratch, map + kept * map_row(),
                         layer_.out_channels);
            held = rows;
            wave.kernels.max_pool({.image = {map, rows.size(), out_.w, map_row(), layer_.out_channels},
                                   .channels = layer_.out_channels,
                                   .kernel_h = w.kernel_h,
                                   .kernel_w = w.kernel_w,
                                   .stride_h = w.stride_h,
                                   .stride_w = w.stride_w,
                                   .dilation_h = w.dilation_h,
                                   .dilation_w = w.dilation_w,
                                   .pad_top = w.pad_top + rows.begin,
                                   .pad_left = w.pad_left,
                                   .y = y.data + image * y.image + step.begin * y.row,
                                   .y_row = y.row,
                                   .out_width = pooled_out_.w,
                                   .out_row_begin = step.begin,
                                   .out_row_end = step.end});
        }
    }

    // Output rows `rows` of an image to `to`, whose pixels are `pixel` floats apart.
    void run_rows(index_t image, Range rows, Range panels, const Wave& wave, float* scratch, float* to,
                  index_t pixel) const {
        const Window& w = layer_.window;
        const Tensor& x = wave.tensors[layer_.input];
        for (index_t begin = panels.begin; begin < panels.end;) {
            const index_t group = begin / grid_.per_group, end_group = std::min(group + groups_at_once_, layer_.groups);
            const Range some{begin, std::min(end_group * grid_.per_group, panels.end)};
            const float* first = x.data + image * x.image + rows.begin * w.stride_h * x.row + group * layer_.group_in();
            if (band_) {
                copy_window(wave, layer_.input, image, in_, {group * layer_.group_in(), end_group * layer_.group_in()},
                            {.y0 = rows.begin * w.stride_h - w.pad_top,
                             .rows = band_rows(rows.size()),
                             .x0 = -w.pad_left,
                             .cols = band_cols_},
                            scratch, pixel_);
                first = scratch;
            }
            if (by_pairs_) {
                multiply_pairs(image, rows, some, wave, scratch, to, pixel);
            } else {
                multiply_rows(image, rows, some, first, wave, to, pixel);
            }
            begin = some.end;
        }
    }

    // `first` is the first input row's first channel of the first panel's group.
    void multiply_rows(index_t image, Range rows, Range panels, const float* first, const Wave& wave, float* to,
                       index_t pixel) const {
        const Window& w = layer_.window;
        const index_t first_group = panels.begin / grid_.per_group;
        for (index_t p = panels.begin; p < panels.end;) {
            const Range chunk = chunk_from(p, panels.end);
            GemmArgs g = panel_args(chunk, wave);
            const index_t channel = grid_.channel(p);
            const index_t group_offset = (p / grid_.per_group - first_group) * layer_.group_in();
            g.lda = w.stride_w * pixel_;
            g.rows = out_.w;
            g.ldc = pixel;
            for (index_t oy = rows.begin; oy < rows.end; ++oy) {
                g.a = first + (oy - rows.begin) * w.stride_h * pitch_ + group_offset;
                g.c = to + (oy - rows.begin) * out_.w * pixel + channel;
                const Residual residual = residual_at(wave, layer_, image, oy, channel);
                g.residual = residual.data;
                g.ldr = residual.pixel;
                multiply(g, wave);
            }
            p = chunk.end;
        }
    }

    // By pairs, of the band in scratch. Transformed rows lie side by side in each pair, so that those of a window are
    // one run of floats.
    void multiply_pairs(index_t image, Range rows, Range panels, const Wave& wave, float* scratch, float* to,
                        index_t pixel) const {
        const Window& w = layer_.window;
        const index_t channels = layer_.in_channels, frequency = pairs() * v_pitch_;
        float *const v = scratch + v_, *const infinity = scratch + infinity_, *const m = scratch + m_;
        for (index_t i = 0; i < band_rows(rows.size()); ++i)
            wave.kernels.winograd_row_input({.band = scratch + i * pitch_,
                                             .pairs = pairs(),
                                             .channels = channels,
                                             .v = v + i * 2 * channels,
                                             .frequency = frequency,
                                             .pitch = v_pitch_,
                                             .infinity = infinity + i * channels,
                                             .infinity_pitch = infinity_pitch_});
        const index_t none = 0;
        GemmArgs g{};
        g.segment_offset = &none;
        g.segments = 1;
        g.chunk = gemm_chunk(wave.kernels);
        g.rows = pairs();
        g.cols = g.ldc = grid_.tile_cols;
        g.floor = activation_floor(Activation::none);
        for (index_t p = panels.begin; p < panels.end; ++p) {
            const index_t channel = grid_.channel(p);
            for (index_t oy = rows.begin; oy < rows.end; ++oy) {
                const index_t row = oy - rows.begin, first = row * w.stride_h * channels;
                g.b = wave.weights.packed(index_, algorithm_) + p * winograd_rows_panel_floats(layer_, grid_);
                for (index_t f = 0; f < kRowFrequencies; ++f) {
                    const bool finite = f + 1 < kRowFrequencies;
                    g.a = finite ? v + f * frequency + 2 * first : infinity + first;
                    g.lda = finite ? v_pitch_ : infinity_pitch_;
                    g.segment_length = w.kernel_h * (finite ? 2 : 1) * channels;
                    g.c = m + f * m_frequency();
                    wave.kernels.gemm(g);
                    g.b += g.segment_length * grid_.tile_cols;
                }
                const Residual residual = residual_at(wave, layer_, image, oy, channel);
                wave.kernels.winograd_row_output({.m = m,
                                                  .frequency = m_frequency(),
                                                  .width = out_.w,
                                                  .cols = grid_.cols(p),
                                                  .scale = wave.weights.scale(index_) + p * grid_.tile_cols,
                                                  .bias = wave.weights.bias(index_) + p * grid_.tile_cols,
                                                  .residual = residual.data,
                                                  .residual_pixel = residual.pixel,
                                                  .floor = activation_floor(layer_.activation),
                                                  .y = to + row * out_.w * pixel + channel,
                                                  .pixel = pixel});
            }
        }
    }

    std::size_t index_;
    const ConvAlgorithm& algorithm_;
    const Layer& layer_;
    Extent in_, out_;
    PanelGrid grid_;
    bool flat_;
    bool by_pairs_;
    bool gathered_;
    bool band_;
    const Layer* pooled_;  // the pooling layer behind, or null
    bool pools_;
    Extent pooled_out_{0, 0};
    index_t pool_rows_ = 0;  // of the max-pool, computed together
    index_t map_ = 0;        // offset of this layer's rows in the thread's scratch
    index_t windows_ = 0;    // floats of gathered windows
    index_t band_cols_ = 0;
    // By pairs: floats between the pairs of transformed rows, and where these and their products are in scratch.
    index_t v_pitch_ = 0, infinity_pitch_ = 0;
    index_t v_ = 0, infinity_ = 0, m_ = 0;
    index_t groups_at_once_ = 1;     // whose channels are read together
    index_t pixel_ = 0, pitch_ = 0;  // floats between input pixels and rows as the kernel reads them
    std::vector<index_t> segments_;
    index_t segment_length_ = 0;
    index_t block_ = 1;         // rows of a flat task
    index_t bands_ = 1;         // bands of output rows of an image
    index_t panel_chunks_ = 1;  // parts that the panels are cut into
};

}  // namespace

std::unique_ptr<Step> make_direct_step(const StepContext& context, std::size_t layer, const ConvAlgorithm& algorithm) {
    return std::make_unique<DirectStep>(context, layer, algorithm);
}

}  // namespace resfuse
