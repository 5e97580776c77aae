#include "pool/global_avg_pool.h"

#include <omp.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "machine/threads.h"
#include "memory/aligned.h"
#include "plan/step.h"

namespace resfuse {

namespace {

// Below this, waking threads costs more than they save.
constexpr index_t kSerialBytes = 256 * 1024;
// Tasks to cut a batch into. A constant, not a multiple of the threads: the order of a sum must not depend on them.
constexpr index_t kTasks = 32;
constexpr index_t kMostChannels = 2048;  // of a task, whose sums lie on its stack

// The images as the kernels want them: whatever of (n, c) is contiguous as channels, the smaller spatial stride inside,
// both spatial dimensions in one where memory allows.
struct Walk {
    explicit Walk(const StridedImages& x)
        : images(x.shape[0]),
          channels(x.shape[1]),
          rows(x.shape[2]),
          cols(x.shape[3]),
          stride_n(x.strides[0]),
          stride_c(x.strides[1]),
          stride_h(x.strides[2]),
          stride_w(x.strides[3]),
          out_n(x.shape[1]),
          out_c(1),
          element(element_bytes(x.dtype)) {
        if (cols == 1 || (rows > 1 && stride_h < stride_w)) {
            std::swap(rows, cols);
            std::swap(stride_h, stride_w);
        }
        if (rows == 1) stride_h = cols * stride_w;
        if (stride_h == cols * stride_w) {
            cols *= rows;
            rows = 1;
        }
        if (cols == 1) stride_w = channels * stride_c;
        const bool swap = (channels == 1 && images > 1) || (stride_n == 1 && stride_c != 1 && images > 1);
        if (swap && stride_w != 1) {
            std::swap(images, channels);
            std::swap(stride_n, stride_c);
            std::swap(out_n, out_c);
        }
        cut();
    }

    index_t tasks() const { return images * chunks * parts; }

    // Part `p` of the pixels: of the rows, or of the columns where there is one row.
    void part_of_pixels(index_t p, index_t& offset, index_t& part_rows, index_t& part_cols) const {
        const Range range = part(rows > 1 ? rows : cols, p, parts);
        offset = range.begin * (rows > 1 ? stride_h : stride_w);
        part_rows = rows > 1 ? range.size() : 1;
        part_cols = rows > 1 ? cols : range.size();
    }

    index_t images, channels, rows, cols;
    index_t stride_n, stride_c, stride_h, stride_w;
    index_t out_n, out_c;  // strides of the pooled result
    index_t element;
    index_t chunks = 1;  // of the channels
    index_t parts = 1;   // of the pixels

  private:
    void cut() {
        const index_t channel_bytes = rows * cols * element;
        // Neighbouring channels share cache lines unless each is a run of its own.
        const index_t fewest = stride_w == 1 ? std::max<index_t>(16, 16 * 1024 / channel_bytes) : 512;
        const index_t wanted = ceil_div(kTasks, images);
        chunks = std::max(std::min(wanted, channels / fewest), ceil_div(channels, kMostChannels));
        const index_t task_bytes = ceil_div(channels, chunks) * channel_bytes;
        parts = std::clamp<index_t>(ceil_div(kTasks, images * chunks), 1, std::max<index_t>(1, task_bytes >> 17));
        parts = std::min(parts, rows > 1 ? rows : cols);
    }
};

template <class F>
void for_each_task(index_t tasks, index_t bytes, int threads, F run_task) {
    if (threads == 1 || tasks == 1 || bytes < kSerialBytes) {
        for (index_t t = 0; t < tasks; ++t) run_task(t);
        return;
    }
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
    for (index_t t = 0; t < tasks; ++t) run_task(t);
}

const char* at(const void* data, index_t elements, index_t element) {
    return static_cast<const char*>(data) + elements * element;
}
char* at(void* data, index_t elements, index_t element) { return static_cast<char*>(data) + elements * element; }

}  // namespace

index_t StridedImages::bytes() const { return elements() * element_bytes(dtype); }

void global_avg_pool(const KernelTable& kernels, const void* x, const StridedImages& images, void* y, int threads) {
    if (images.elements() == 0) return;
    const Walk w(images);
    const ElementKernels& of_type = kernels_of(kernels, images.dtype);
    const index_t accumulator = images.dtype == DType::fp64 ? 8 : 4;
    const auto mean = [&](const void* sums, index_t part_stride, index_t image, Range channels) {
        of_type.pool_mean({.sums = sums,
                           .parts = w.parts,
                           .part_stride = part_stride,
                           .channels = channels.size(),
                           .pixels = images.pixels(),
                           .y = at(y, image * w.out_n + channels.begin * w.out_c, w.element),
                           .stride_y = w.out_c});
    };
    // Sums of parts of the pixels, [part][image][channel]; whole sums need no memory of their own.
    const index_t part_stride = w.images * w.channels;
    std::vector<double> partial(w.parts > 1 ? static_cast<std::size_t>(w.parts * part_stride) : 0);

    for_each_task(w.tasks(), images.bytes(), threads, [&](index_t task) {
        const index_t image = task / (w.chunks * w.parts), chunk = task / w.parts % w.chunks, p = task % w.parts;
        const Range channels = part(w.channels, chunk, w.chunks);
        index_t offset, rows, cols;
        w.part_of_pixels(p, offset, rows, cols);
        double local[kMostChannels];
        void* sums = w.parts == 1
                         ? local
                         : static_cast<void*>(
                               at(partial.data(), p * part_stride + image * w.channels + channels.begin, accumulator));
        of_type.pool_sum({.x = at(x, image * w.stride_n + channels.begin * w.stride_c + offset, w.element),
                          .channels = channels.size(),
                          .rows = rows,
                          .cols = cols,
                          .stride_c = w.stride_c,
                          .stride_h = w.stride_h,
                          .stride_w = w.stride_w,
                          .sums = sums});
        if (w.parts == 1) mean(sums, 0, image, channels);
    });
    if (w.parts > 1)
        for (index_t image = 0; image < w.images; ++image)
            mean(at(partial.data(), image * w.channels, accumulator), part_stride, image, {0, w.channels});
}

void global_avg_pool_backward(const KernelTable& kernels, const void* grad, std::array<index_t, 2> grad_strides,
                              void* dx, const StridedImages& images, int threads) {
    if (images.elements() == 0) return;
    const Walk w(images);
    const bool swapped = w.out_c != 1;
    advise_huge_pages(dx, static_cast<std::size_t>(images.bytes()));
    for_each_task(w.tasks(), images.bytes(), threads, [&](index_t task) {
        const index_t image = task / (w.chunks * w.parts), chunk = task / w.parts % w.chunks, p = task % w.parts;
        const Range channels = part(w.channels, chunk, w.chunks);
        index_t offset, rows, cols;
        w.part_of_pixels(p, offset, rows, cols);
        const index_t grad_n = grad_strides[swapped ? 1 : 0], grad_c = grad_strides[swapped ? 0 : 1];
        kernels_of(kernels, images.dtype)
            .pool_spread({.grad = at(grad, image * grad_n + channels.begin * grad_c, w.element),
                          .stride_grad = grad_c,
                          .pixels = images.pixels(),
                          .dx = at(dx, image * w.stride_n + channels.begin * w.stride_c + offset, w.element),
                          .channels = channels.size(),
                          .rows = rows,
                          .cols = cols,
                          .stride_c = w.stride_c,
                          .stride_h = w.stride_h,
                          .stride_w = w.stride_w});
    });
}

std::uint32_t read_all(const KernelTable& kernels, const void* data, index_t bytes, int threads) {
    std::uint32_t checksum = 0;
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static) \
    reduction(^ : checksum) if (bytes >= kSerialBytes)
    for (int t = 0; t < threads; ++t) {
        const Range range = part(bytes / 64, t, threads);
        checksum ^= kernels.read_all(at(data, range.begin, 64), range.size() * 64);
    }
    return checksum;
}

}  // namespace resfuse
