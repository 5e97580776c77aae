#include "conv/direct/direct_rows_step.h"

#include <algorithm>
#include <cstring>

#include "memory/arena.h"

namespace resfuse {

namespace {

index_t window_cols(const Window& w, index_t out) {
    return (out - 1) * w.stride_w + (w.kernel_w - 1) * w.dilation_w + 1;
}

}  // namespace

DirectRowsStep::DirectRowsStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm)
    : DirectRowsStep(
          context, index, algorithm,
          {.cols = window_cols(context.layers[index].window, context.buffer(context.layers[index].output).extent.w),
           .transformed = 0,
           .always = false}) {
    plan(context);
}

DirectRowsStep::DirectRowsStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm,
                               const BandShape& shape)
    : DirectStep(context, index, algorithm),
      shape_(shape),
      band_(shape.always || runs_.joined || layer_.window.has_padding() || !reads_in_place()),
      pools_(can_pool()) {
    groups_at_once_ = band_ ? std::clamp<index_t>(kBandChannels / layer_.group_in(), 1, layer_.groups) : layer_.groups;
    // Groups read a part of each pixel; all others read rows of pixels in one piece.
    const index_t band_pixel = layer_.groups > 1 ? padded_row(groups_at_once_ * layer_.group_in()) : layer_.in_channels;
    pixel_ = band_ ? band_pixel : context.buffer(layer_.input).pixel;
    pitch_ = (band_ ? shape_.cols : in_.w) * pixel_;
}

void DirectRowsStep::plan(const StepContext& context) {
    set_segments();
    plan_rows(context);
    if (pools_) plan_max_pool(context);
}

index_t DirectRowsStep::tasks(int stage, index_t images) const {
    if (stage == 1) return images;
    return pools_ ? images * bands_ : images * bands_ * panel_chunks_;
}

void DirectRowsStep::run(int stage, index_t task, const Wave& wave, void* memory) const {
    if (stage == 1) return softmax(task, wave);
    if (pools_) return run_max_pool(task / bands_, part(pooled_out_.h, task % bands_, bands_), wave, memory);
    const Range panels = part(grid_.total, task % panel_chunks_, panel_chunks_);
    const index_t band = task / panel_chunks_, image = band / bands_;
    const Range rows = part(out_.h, band % bands_, bands_);
    const Tensor& y = wave.tensors[layer_.output];
    run_rows(image, rows, panels, wave, memory, y.at(image * y.image + rows.begin * y.row), y.pixel);
}

bool DirectRowsStep::can_pool() const {
    if (!pooled_ || layer_.activation == Activation::softmax || pooled_->kind != LayerKind::max_pool) return false;
    const Window& w = pooled_->window;
    return w.stride_h <= w.kernel_h && w.dilation_h == 1 && w.kernel_h * map_row() <= kMostPooledFloats;
}

void DirectRowsStep::set_segments() {
    const Window& w = layer_.window;
    if (runs_.joined) {
        segments_ = {0};
        segment_length_ = runs_.padded;
        joined_bytes_ = arena_round_up(operands_in_bytes(out_.w * runs_.padded));
        return;
    }
    if (runs_.count == w.kernel_h && (w.kernel_w == 1 || pixel_ == layer_.in_channels)) {
        segment_length_ = runs_.padded;
        for (index_t r = 0; r < w.kernel_h; ++r) segments_.push_back(r * w.dilation_h * pitch_);
        return;
    }
    // Single taps. Where they are not what is padded, they are whole units.
    segment_length_ = runs_.count == w.kernel_h * w.kernel_w ? runs_.padded : layer_.group_in();
    for (index_t r = 0; r < w.kernel_h; ++r)
        for (index_t s = 0; s < w.kernel_w; ++s)
            segments_.push_back(r * w.dilation_h * pitch_ + s * w.dilation_w * pixel_);
}

void DirectRowsStep::plan_rows(const StepContext& context) {
    const Window& w = layer_.window;
    const index_t row_operands = w.stride_h * (shape_.cols + shape_.transformed) * groups_at_once_ * layer_.group_in();
    const index_t most_rows = std::max<index_t>(1, block_operands() / row_operands);
    bands_ = ceil_div(out_.h, most_rows);
    const index_t wanted = 4 * context.threads;
    if (context.images * bands_ < wanted) {
        // Groups have nothing in common; bands read the rows between them twice.
        if (layer_.groups >= wanted || reduction() * layer_.out_channels > block_operands()) {
            // Each thread a band, whose pixels are in its caches.
            if (layer_.groups > 1)
                bands_ = std::max(bands_, std::min(out_.h, ceil_div(context.threads, context.images)));
            panel_chunks_ = std::min(grid_.total, ceil_div(wanted, context.images * bands_));
        } else {
            bands_ = std::min(out_.h, ceil_div(wanted, context.images));
        }
    }
    if (band_) thread_scratch = joined_bytes_ + operands_in_bytes(plan_band(ceil_div(out_.h, bands_)));
}

// A task takes a band of the max-pool's rows, in steps of a few. The rows of this layer that a step computes lie in
// scratch behind the copied input; those that the next step's windows share with it move to the front.
void DirectRowsStep::plan_max_pool(const StepContext& context) {
    const Window& w = pooled_->window;
    pooled_out_ = context.buffer(pooled_->output).extent;
    pool_rows_ = std::max<index_t>(1, (kMostPooledFloats / map_row() - w.kernel_h) / w.stride_h + 1);
    // Rows between two bands are computed twice.
    bands_ = std::clamp<index_t>(2 * context.threads / context.images, 1, pooled_out_.h);
    panel_chunks_ = 1;
    const index_t rows = std::min((pool_rows_ - 1) * w.stride_h + w.kernel_h, out_.h);
    // Rows of any type may follow.
    band_bytes_ = joined_bytes_ + (band_ ? arena_round_up(operands_in_bytes(plan_band(rows))) : 0);
    thread_scratch = band_bytes_ + static_cast<std::size_t>(rows * map_row()) * element_bytes(layer_.type);
}

index_t DirectRowsStep::plan_band(index_t out_rows) { return band_rows(out_rows) * pitch_ + operands_behind(); }

void DirectRowsStep::run_max_pool(index_t image, Range pool_rows, const Wave& wave, void* scratch) const {
    const Window& w = pooled_->window;
    const Tensor& y = wave.tensors[pooled_->output];
    const DType type = layer_.type;
    std::byte* const map = static_cast<std::byte*>(scratch) + band_bytes_;
    const std::size_t row_bytes = static_cast<std::size_t>(map_row()) * element_bytes(type);
    Range held{0, 0};  // rows of this layer in the map
    for (index_t row = pool_rows.begin; row < pool_rows.end; row += pool_rows_) {
        const Range step{row, std::min(row + pool_rows_, pool_rows.end)};
        const Range rows{std::max<index_t>(step.begin * w.stride_h - w.pad_top, 0),
                         std::min((step.end - 1) * w.stride_h - w.pad_top + w.kernel_h, out_.h)};
        const index_t kept = std::max<index_t>(held.end - rows.begin, 0);
        std::memmove(map, element_at(map, (held.size() - kept) * map_row(), type),
                     static_cast<std::size_t>(kept) * row_bytes);
        if (rows.begin + kept < rows.end)
            run_rows(image, {rows.begin + kept, rows.end}, {0, grid_.total}, wave, scratch,
                     element_at(map, kept * map_row(), type), layer_.out_channels);
        held = rows;
        wave.kernels_of(pooled_->output)
            .max_pool({.image = {map, rows.size(), out_.w, map_row(), layer_.out_channels},
                       .channels = layer_.out_channels,
                       .window = w.args(rows.begin),
                       .y = y.at(image * y.image + step.begin * y.row),
                       .y_row = y.row,
                       .y_pixel = y.pixel,
                       .out_width = pooled_out_.w,
                       .out_row_begin = step.begin,
                       .out_row_end = step.end});
    }
}

// Output rows of an image to `to`, whose pixels are `pixel` elements apart.
void DirectRowsStep::run_rows(index_t image, Range rows, Range panels, const Wave& wave, void* scratch, void* to,
                              index_t pixel) const {
    const Window& w = layer_.window;
    const Tensor& x = wave.tensors[layer_.input];
    for (index_t begin = panels.begin; begin < panels.end;) {
        const index_t group = begin / grid_.per_group, end_group = std::min(group + groups_at_once_, layer_.groups);
        const Range some{begin, std::min(end_group * grid_.per_group, panels.end)};
        void* const band = static_cast<std::byte*>(scratch) + joined_bytes_;
        const void* first = band;
        if (band_) {
            copy_operands(wave, window_copy(x, image, in_, {group * layer_.group_in(), end_group * layer_.group_in()},
                                            {.y0 = rows.begin * w.stride_h - w.pad_top,
                                             .rows = band_rows(rows.size()),
                                             .x0 = -w.pad_left,
                                             .cols = shape_.cols},
                                            band, pixel_));
        } else {
            first = x.at(image * x.image + rows.begin * w.stride_h * x.row + group * layer_.group_in());
        }
        multiply_rows(image, rows, some, first, wave, scratch, to, pixel);
        begin = some.end;
    }
}

void DirectRowsStep::multiply_rows(index_t image, Range rows, Range panels, const void* first, const Wave& wave,
                                   void* scratch, void* to, index_t pixel) const {
    const Window& w = layer_.window;
    if (runs_.joined) {
        // Row by row: their windows are in cache while all panels pass.
        for (index_t oy = rows.begin; oy < rows.end; ++oy) {
            wave.kernels.join_windows({.band = operand_at(first, (oy - rows.begin) * w.stride_h * pitch_),
                                       .windows = out_.w,
                                       .window_bytes = operand_bytes() * w.stride_w * pixel_,
                                       .runs = w.kernel_h,
                                       .run_bytes = operand_bytes() * w.kernel_w * pixel_,
                                       .row_bytes = operand_bytes() * w.dilation_h * pitch_,
                                       .to = scratch,
                                       .padded_bytes = operand_bytes() * runs_.padded});
            multiply_lines(image, {oy, oy + 1}, panels, scratch, runs_.padded, wave,
                           element_at(to, (oy - rows.begin) * out_.w * pixel, layer_.type), pixel);
        }
        return;
    }
    multiply_lines(image, rows, panels, first, w.stride_w * pixel_, wave, to, pixel);
}

void DirectRowsStep::multiply_lines(index_t image, Range rows, Range panels, const void* first, index_t lda,
                                    const Wave& wave, void* to, index_t pixel) const {
    const Window& w = layer_.window;
    const index_t first_group = panels.begin / grid_.per_group;
    for (index_t p = panels.begin; p < panels.end;) {
        const Range chunk = chunk_from(p, panels.end);
        GemmArgs g = panel_args(chunk, segments_, segment_length_, wave);
        const index_t channel = grid_.channel(p);
        const index_t group_offset = (p / grid_.per_group - first_group) * layer_.group_in();
        g.lda = lda;
        g.rows = out_.w;
        g.ldc = pixel;
        if (units().takes_lines) {
            g.lines = rows.size();
            g.line_a = w.stride_h * pitch_;
            g.line_c = out_.w * pixel;
            g.line_r = layer_.residual >= 0 ? wave.tensors[layer_.residual].row : 0;
        }
        for (index_t oy = rows.begin; oy < rows.end; oy += g.lines) {
            g.a = operand_at(first, (oy - rows.begin) * w.stride_h * pitch_ + group_offset);
            g.c = element_at(to, (oy - rows.begin) * out_.w * pixel + channel, layer_.type);
            const Residual residual = residual_at(wave, layer_, image, oy, channel);
            g.residual = residual.data;
            g.ldr = residual.pixel;
            multiply(g, p, layer_.type, wave);
        }
        p = chunk.end;
    }
}

}  // namespace resfuse
