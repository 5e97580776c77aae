// dw[k][r, s, c] = sum over output pixels t of grad[t][k] * window[t][r, s, c]: one matrix product whose reduction runs
// over all pixels of the batch. Pixels are cut into parts, the matrix into blocks; a task adds up one block over one
// part, some pixels at a time: their gradients as rows, their windows as panels, copied together unless they are
// pixels. Parts depend on the sizes alone and are added in their order.
#include "conv/gradients/weight_gradient.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "conv/winograd/winograd.h"
#include "machine/threads.h"
#include "memory/aligned.h"

namespace resfuse {

namespace {

constexpr index_t kBlockRows = 256;    // output channels of a task, at most
constexpr index_t kBlockPanels = 8;    // and panels of its windows
constexpr index_t kBlockPixels = 256;  // taken together
constexpr index_t kTasks = 16;         // at least, where there are pixels enough

class DirectGradient {
  public:
    DirectGradient(const KernelTable& kernels, const WeightGradient& g)
        : kernels_(kernels),
          elements_(kernels_of(kernels, g.x.type)),
          g_(g),
          w_(g.layer.window),
          channels_(g.layer.in_channels) {
        rows_ = g.layer.out_channels;
        columns_ = w_.kernel_h * w_.kernel_w * channels_;
        panels_ = ceil_div(columns_, kernels.tile_cols);
        pixels_ = g.batch * g.out.h * g.out.w;
        row_blocks_ = ceil_div(rows_, kBlockRows);
        panel_blocks_ = ceil_div(panels_, kBlockPanels);
        parts_ = std::clamp<index_t>(kTasks / (row_blocks_ * panel_blocks_), 1, ceil_div(pixels_, 4 * kBlockPixels));
        widest_ = ceil_div(panels_, panel_blocks_) * kernels.tile_cols;
    }

    void run(int threads) {
        const index_t cols = panels_ * kernels_.tile_cols;
        const index_t scratch = kBlockPixels * (2 * widest_ + kLineFloats + grad_pitch());
        const AlignedFloats lease(static_cast<std::size_t>(parts_ * rows_ * cols + threads * scratch));
        sums_ = lease.data();
        float* const scratches = sums_ + parts_ * rows_ * cols;
        const index_t blocks = row_blocks_ * panel_blocks_;
#pragma omp parallel num_threads(usable_threads(threads))
        {
            const FlushDenormals flush;
            float* const own = scratches + omp_get_thread_num() * scratch;
#pragma omp for schedule(dynamic)
            for (index_t task = 0; task < parts_ * blocks; ++task)
                add_up(task / blocks, part(rows_, task % blocks / panel_blocks_, row_blocks_),
                       part(panels_, task % panel_blocks_, panel_blocks_), own);
#pragma omp for schedule(static)
            for (index_t k = 0; k < rows_; ++k) finish(k);
        }
    }

  private:
    // Floats that a task reads whole are read in place, where they lie in one piece: the next block's can be fetched
    // meanwhile. Others are copied, and other types widened.
    bool grads_in_place() const { return g_.grad.type == DType::fp32 && row_blocks_ == 1; }
    bool windows_in_place() const {
        return g_.x.type == DType::fp32 && w_.is_pointwise() && panel_blocks_ == 1 &&
               channels_ % kernels_.tile_cols == 0;
    }
    index_t grad_pitch() const { return kBlockRows + kLineFloats; }

    void add_up(index_t of, Range rows, Range panels, float* scratch) const {
        const index_t cols = panels_ * kernels_.tile_cols;
        float* const c = sums_ + of * rows_ * cols + rows.begin * cols + panels.begin * kernels_.tile_cols;
        float* const windows = scratch;
        float* const packed = windows + kBlockPixels * (widest_ + kLineFloats);
        float* const grads = packed + kBlockPixels * widest_;
        const Range pixels = part(pixels_, of, parts_);
        for (index_t t = pixels.begin; t < pixels.end; t += kBlockPixels) {
            const index_t count = std::min(kBlockPixels, pixels.end - t);
            const index_t next = std::min(kBlockPixels, pixels.end - t - count);
            OuterProductArgs g{.b_panel = kernels_.tile_cols,
                               .c = c,
                               .c_panel = kernels_.tile_cols,
                               .ldc = cols,
                               .rows = rows.size(),
                               .panels = panels.size(),
                               .steps = count,
                               .accumulate = t > pixels.begin};
            if (grads_in_place()) {
                g.a = g_.grad.floats() + t * rows_;
                g.lda = rows_;
                g.next_a = g.a + count * rows_;
                g.next_a_floats = next * rows_;
            } else {
                elements_.copy_band({.image = g_.grad.at(t * rows_ + rows.begin),
                                     .height = 1,
                                     .width = count,
                                     .channels = rows.size(),
                                     .stride_w = rows_,
                                     .stride_c = 1,
                                     .rows = 1,
                                     .cols = count,
                                     .band = grads,
                                     .pixel = grad_pitch()});
                g.a = grads;
                g.lda = grad_pitch();
            }
            if (windows_in_place()) {
                g.b = g_.x.floats() + t * channels_;
                g.ldb = channels_;
                g.next_b = g.b + count * channels_;
                g.next_b_floats = next * channels_;
            } else {
                pack_windows({t, t + count}, panels, windows, packed);
                g.b = packed;
                g.b_panel = kBlockPixels * kernels_.tile_cols;
                g.ldb = kernels_.tile_cols;
            }
            kernels_.outer_product(g);
        }
    }

    void pack_windows(Range pixels, Range panels, float* windows, float* packed) const {
        const index_t first = panels.begin * kernels_.tile_cols;
        const index_t end = std::min(panels.end * kernels_.tile_cols, columns_);
        PackRowsArgs pack{.x = windows,
                          .pixel = widest_ + kLineFloats,
                          .rows = pixels.size(),
                          .channels = end - first,
                          .panels = packed,
                          .panel_stride = kBlockPixels * kernels_.tile_cols};
        if (w_.is_pointwise()) {
            pack.x = g_.x.at(pixels.begin * channels_ + first);
            pack.pixel = channels_;
        } else if (w_.kernel_h == 1 && w_.kernel_w == 1 && !w_.has_padding()) {
            return pack_strided_pixels(pixels, pack, first);
        } else {
            for (index_t i = pixels.begin; i < pixels.end;) {
                void* const to = element_at(windows, (i - pixels.begin) * pack.pixel, g_.x.type);
                const index_t inside = first == 0 && end == columns_ ? copy_whole_windows({i, pixels.end}, to) : 0;
                if (inside == 0) copy_window_part(i, first, end, to);
                i += std::max<index_t>(inside, 1);
            }
        }
        elements_.pack_rows(pack);
    }

    // Pixels of a strided 1 x 1 convolution, output row by output row.
    void pack_strided_pixels(Range pixels, PackRowsArgs pack, index_t first) const {
        pack.pixel = w_.stride_w * channels_;
        float* const panels = pack.panels;
        for (index_t i = pixels.begin; i < pixels.end; i += pack.rows) {
            const index_t row = i / g_.out.w, column = i % g_.out.w;  // of all images
            const index_t y = row % g_.out.h * w_.stride_h, image = row / g_.out.h;
            pack.rows = std::min(g_.out.w - column, pixels.end - i);
            pack.x = g_.x.at(((image * g_.in.h + y) * g_.in.w + column * w_.stride_w) * channels_ + first);
            pack.panels = panels + (i - pixels.begin) * kernels_.tile_cols;
            elements_.pack_rows(pack);
        }
    }

    // The windows of the pixels from the first on that lie in one row and wholly inside the image; returns how many.
    index_t copy_whole_windows(Range pixels, void* to) const {
        if (w_.dilation_w != 1) return 0;
        const index_t in_image = pixels.begin % (g_.out.h * g_.out.w), oy = in_image / g_.out.w;
        const index_t ox = in_image % g_.out.w;
        const index_t y0 = oy * w_.stride_h - w_.pad_top, x0 = ox * w_.stride_w - w_.pad_left;
        const bool rows_inside = y0 >= 0 && y0 + (w_.kernel_h - 1) * w_.dilation_h < g_.in.h;
        if (!rows_inside || x0 < 0 || x0 + w_.kernel_w > g_.in.w) return 0;
        const index_t fit = (g_.in.w - w_.kernel_w - x0) / w_.stride_w + 1;
        const index_t count = std::min({fit, g_.out.w - ox, pixels.size()});
        const index_t row = g_.in.w * channels_, image = pixels.begin / (g_.out.h * g_.out.w);
        elements_.copy_windows({.x = g_.x.at((image * g_.in.h + y0) * row + x0 * channels_),
                                .pixel = w_.stride_w * channels_,
                                .row = w_.dilation_h * row,
                                .pixels = count,
                                .rows = w_.kernel_h,
                                .run = w_.kernel_w * channels_,
                                .to = to,
                                .pitch = widest_ + kLineFloats});
        return count;
    }

    // Elements [first, end) of one pixel's window.
    void copy_window_part(index_t pixel, index_t first, index_t end, void* to) const {
        const index_t image = pixel / (g_.out.h * g_.out.w), in_image = pixel % (g_.out.h * g_.out.w);
        const index_t y0 = in_image / g_.out.w * w_.stride_h - w_.pad_top;
        const index_t x0 = in_image % g_.out.w * w_.stride_w - w_.pad_left;
        const DType type = g_.x.type;
        const void* const data = g_.x.at(image * g_.in.h * g_.in.w * channels_);
        const index_t row_run = w_.kernel_w * channels_;
        const bool whole_rows = w_.dilation_w == 1 && x0 >= 0 && x0 + w_.kernel_w <= g_.in.w;
        while (first < end) {
            const index_t r = first / row_run, y = y0 + r * w_.dilation_h;
            const bool row_inside = y >= 0 && y < g_.in.h;
            index_t until = (r + 1) * row_run, at = 0;
            bool inside = row_inside;
            if (row_inside && whole_rows) {
                at = (y * g_.in.w + x0) * channels_ + first % row_run;
            } else if (row_inside) {
                const index_t s = first % row_run / channels_, x = x0 + s * w_.dilation_w;
                until = r * row_run + (s + 1) * channels_;
                inside = x >= 0 && x < g_.in.w;
                at = (y * g_.in.w + x) * channels_ + first % channels_;
            }
            const index_t n = std::min(until, end) - first;
            const std::size_t bytes = static_cast<std::size_t>(n) * element_bytes(type);
            if (inside) {
                std::memcpy(to, element_at(data, at, type), bytes);
            } else {
                std::memset(to, 0, bytes);
            }
            to = element_at(to, n, type);
            first += n;
        }
    }

    // One output channel: the parts' sums, in torch's order of weights.
    void finish(index_t k) const {
        const index_t cols = panels_ * kernels_.tile_cols;
        float* const sum = sums_ + k * cols;
        for (index_t p = 1; p < parts_; ++p) {
            const float* const more = sum + p * rows_ * cols;
            for (index_t i = 0; i < columns_; ++i) sum[i] += more[i];
        }
        const auto [stride_k, stride_c, stride_h, stride_w] = g_.dw_strides;
        float* const dw = g_.dw + k * stride_k;
        for (index_t r = 0; r < w_.kernel_h; ++r)
            for (index_t s = 0; s < w_.kernel_w; ++s) {
                const float* const from = sum + (r * w_.kernel_w + s) * channels_;
                float* const to = dw + r * stride_h + s * stride_w;
                for (index_t c = 0; c < channels_; ++c) to[c * stride_c] = from[c];
            }
    }

    const KernelTable& kernels_;
    const ElementKernels& elements_;
    const WeightGradient& g_;
    const Window& w_;
    index_t channels_;
    index_t rows_, columns_, panels_;  // of dw as a matrix
    index_t pixels_;                   // of all images
    index_t row_blocks_, panel_blocks_, parts_;
    index_t widest_;  // columns of a block of panels
    float* sums_ = nullptr;
};

bool pays(const KernelTable& kernels, const WeightGradient& g) {
    if (!allows_winograd(g.layer) || winograd_stride(g.layer) != 1) return false;
    const WinogradKernels& winograd = winograd_f4_kernels(kernels);
    const index_t tiles = ceil_div(g.out.h, winograd.tile) * ceil_div(g.out.w, winograd.tile);
    return 2 * tiles * winograd.points * winograd.points <= 9 * g.out.h * g.out.w;
}

}  // namespace

void direct_weight_gradient(const KernelTable& kernels, const WeightGradient& g, int threads) {
    DirectGradient(kernels, g).run(threads);
}

void weight_gradient(const KernelTable& kernels, const WeightGradient& g, int threads) {
    const auto compute = pays(kernels, g) ? winograd_weight_gradient : direct_weight_gradient;
    compute(kernels, g, threads);
}

}  // namespace resfuse
