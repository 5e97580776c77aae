// Pixels of dx fall into stride x stride phases. In a phase, all pixels meet the same taps of the window, so it is a
// convolution of stride 1 with those taps: no zeros are multiplied. A task gathers the gradients that a block of a
// phase's pixels (of any images) meets, multiplies, and writes the rows where they belong.
#include "conv/gradients/input_gradient.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "conv/cost.h"
#include "machine/threads.h"
#include "memory/aligned.h"

namespace resfuse {

namespace {

constexpr index_t kBlockPixels = 112;
constexpr index_t kPanelGroup = 4;  // whose results lie in scratch together

// Taps of one dimension that meet pixels first, first + stride, ...: first_tap, first_tap + stride, ...
struct Phase {
    index_t first_pixel, pixels;
    index_t first_tap, taps;
    index_t position;  // of the gradient that the first tap and the first pixel meet
};

Phase phase_of(index_t number, index_t size, index_t kernel, index_t stride, index_t pad) {
    // Pixel p meets tap r where p + pad - r is a multiple of the stride.
    Phase phase{number, size > number ? ceil_div(size - number, stride) : 0, (number + pad) % stride, 0, 0};
    phase.taps = kernel > phase.first_tap ? ceil_div(kernel - phase.first_tap, stride) : 0;
    phase.position = (number + pad - phase.first_tap) / stride;
    return phase;
}

class StridedGradient {
  public:
    StridedGradient(const KernelTable& kernels, const InputGradient& g)
        : kernels_(kernels),
          elements_(kernels_of(kernels, g.dx.type)),
          g_(g),
          channels_(g.layer.in_channels),
          gradients_(g.layer.out_channels) {
        panels_ = ceil_div(channels_, kernels.tile_cols);
        const Window& w = g.layer.window;
        for (index_t y = 0; y < w.stride_h; ++y)
            for (index_t x = 0; x < w.stride_w; ++x) {
                Part part{.rows = phase_of(y, g.in.h, w.kernel_h, w.stride_h, w.pad_top),
                          .cols = phase_of(x, g.in.w, w.kernel_w, w.stride_w, w.pad_left)};
                part.depth = part.rows.taps * part.cols.taps * gradients_;
                part.weights = weight_floats_;
                part.first_task = tasks_;
                if (part.depth == 0 && g.accumulate) continue;
                weight_floats_ += panels_ * part.depth * kernels.tile_cols;
                tasks_ += ceil_div(pixels(part), kBlockPixels);
                deepest_ = std::max(deepest_, part.depth);
                parts_.push_back(part);
            }
    }

    void run(int threads) {
        const index_t windows = kBlockPixels * padded_pixel(deepest_), results = kBlockPixels * kPanelGroup * cols();
        const AlignedFloats lease(static_cast<std::size_t>(weight_floats_ + threads * (windows + results)));
        weights_ = lease.data();
        float* const scratch = weights_ + weight_floats_;
        const index_t packs = static_cast<index_t>(parts_.size()) * panels_;
#pragma omp parallel num_threads(usable_threads(threads))
        {
            const FlushDenormals flush;
            float* const own = scratch + omp_get_thread_num() * (windows + results);
#pragma omp for schedule(dynamic)
            for (index_t i = 0; i < packs; ++i) pack(parts_[static_cast<std::size_t>(i / panels_)], i % panels_);
#pragma omp for schedule(dynamic)
            for (index_t task = 0; task < tasks_; ++task) {
                const Part* part = &parts_.back();
                while (part->first_task > task) --part;
                compute(*part, task - part->first_task, own, own + windows);
            }
        }
    }

  private:
    struct Part {
        Phase rows, cols;
        index_t depth = 0;    // of the product
        index_t weights = 0;  // offset
        index_t first_task = 0;
    };

    index_t cols() const { return kernels_.tile_cols; }
    index_t pixels(const Part& part) const { return g_.batch * part.rows.pixels * part.cols.pixels; }

    // Taps from the last to the first, as the gradients that they meet lie in memory; input channels are the columns.
    void pack(const Part& part, index_t panel) const {
        if (part.depth == 0) return;
        const Window& w = g_.layer.window;
        const auto [stride_k, stride_c, stride_h, stride_w] = g_.strides;
        const index_t last_r = part.rows.first_tap + (part.rows.taps - 1) * w.stride_h;
        const index_t last_s = part.cols.first_tap + (part.cols.taps - 1) * w.stride_w;
        kernels_.pack_direct({.weight = g_.weight + last_r * stride_h + last_s * stride_w,
                              .stride_k = stride_c,
                              .stride_c = stride_k,
                              .stride_h = -w.stride_h * stride_h,
                              .stride_w = -w.stride_w * stride_w,
                              .scale = nullptr,
                              .first_k = panel * cols(),
                              .cols = std::min(cols(), channels_ - panel * cols()),
                              .channels = gradients_,
                              .kernel_h = part.rows.taps,
                              .kernel_w = part.cols.taps,
                              .packed = weights_ + part.weights + panel * part.depth * cols()});
    }

    void compute(const Part& part, index_t block, float* windows, float* results) const {
        const index_t blocks = ceil_div(pixels(part), kBlockPixels);
        const Range range = resfuse::part(pixels(part), block, blocks);
        if (part.depth == 0) {
            for (index_t i = range.begin; i < range.end; ++i) std::memset(channels_at(part, i, 0), 0, bytes(channels_));
            return;
        }
        for (index_t i = range.begin; i < range.end; ++i)
            gather(part, i, windows + (i - range.begin) * padded_pixel(part.depth));
        const index_t zero_offset = 0;
        for (index_t p = 0; p < panels_; p += kPanelGroup) {
            const index_t first = p * cols(), count = std::min(kPanelGroup * cols(), channels_ - first);
            GemmArgs gemm{};
            gemm.a = windows;
            gemm.lda = padded_pixel(part.depth);
            gemm.segment_offset = &zero_offset;
            gemm.segments = 1;
            gemm.segment_length = part.depth;
            gemm.chunk = gemm_chunk(kernels_);
            gemm.b = weights_ + part.weights + p * part.depth * cols();
            gemm.c = results;
            gemm.ldc = kPanelGroup * cols();
            if (g_.accumulate) {
                for (index_t i = range.begin; i < range.end; ++i)
                    std::memcpy(result(results, i - range.begin), channels_at(part, i, first), bytes(count));
                gemm.residual = results;
                gemm.ldr = gemm.ldc;
            }
            gemm.rows = range.size();
            gemm.cols = count;
            gemm.floor = activation_floor(Activation::none);
            elements_.gemm(gemm);
            for (index_t i = range.begin; i < range.end; ++i)
                std::memcpy(channels_at(part, i, first), result(results, i - range.begin), bytes(count));
        }
    }

    // Image and place in the phase of pixel i of all images.
    struct Place {
        index_t image, row, col;
    };
    static Place place(const Part& part, index_t i) {
        const index_t per_image = part.rows.pixels * part.cols.pixels;
        return {i / per_image, i % per_image / part.cols.pixels, i % part.cols.pixels};
    }

    std::size_t bytes(index_t elements) const { return static_cast<std::size_t>(elements) * element_bytes(g_.dx.type); }
    // Channels of pixel i of a phase, and of those in scratch.
    void* channels_at(const Part& part, index_t i, index_t first) const {
        const Window& w = g_.layer.window;
        const auto [image, row, col] = place(part, i);
        const index_t y = part.rows.first_pixel + row * w.stride_h, x = part.cols.first_pixel + col * w.stride_w;
        return g_.dx.at(((image * g_.in.h + y) * g_.in.w + x) * channels_ + first);
    }
    void* result(float* results, index_t i) const { return element_at(results, i * kPanelGroup * cols(), g_.dx.type); }

    void gather(const Part& part, index_t i, float* to) const {
        const auto [image, row, col] = place(part, i);
        const index_t y0 = part.rows.position + row - (part.rows.taps - 1);
        const index_t x0 = part.cols.position + col - (part.cols.taps - 1);
        elements_.copy_band({.image = g_.grad.at(image * g_.out.h * g_.out.w * gradients_),
                             .height = g_.out.h,
                             .width = g_.out.w,
                             .channels = gradients_,
                             .stride_h = g_.out.w * gradients_,
                             .stride_w = gradients_,
                             .stride_c = 1,
                             .y0 = y0,
                             .rows = part.rows.taps,
                             .x0 = x0,
                             .cols = part.cols.taps,
                             .band = to,
                             .pixel = gradients_});
    }

    const KernelTable& kernels_;
    const ElementKernels& elements_;
    const InputGradient& g_;
    index_t channels_, gradients_, panels_;
    std::vector<Part> parts_;
    index_t weight_floats_ = 0, tasks_ = 0, deepest_ = 0;
    float* weights_ = nullptr;
};

}  // namespace

void input_gradient(const KernelTable& kernels, const InputGradient& g, int threads) {
    StridedGradient(kernels, g).run(threads);
}

}  // namespace resfuse
