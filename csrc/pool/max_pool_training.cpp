#include "pool/max_pool_training.h"

#include "machine/threads.h"

namespace resfuse {

namespace {

constexpr index_t kTaskRows = 8;

// Calls run(image, rows) for bands of `height` rows of every image.
template <class F>
void for_each_band(index_t batch, index_t height, int threads, F run) {
    const index_t bands = ceil_div(height, kTaskRows);
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(dynamic)
    for (index_t task = 0; task < batch * bands; ++task) run(task / bands, part(height, task % bands, bands));
}

}  // namespace

void max_pool_forward(const KernelTable& kernels, const PoolShape& shape, const void* x, void* y, std::uint8_t* taps,
                      int threads) {
    const Window& w = shape.window;
    const ElementKernels& elements = kernels_of(kernels, shape.type);
    const index_t row = shape.in.w * shape.channels, y_row = shape.out.w * shape.channels;
    for_each_band(shape.batch, shape.out.h, threads, [&](index_t image, Range rows) {
        const index_t at = (image * shape.out.h + rows.begin) * y_row;
        elements.max_pool_index({.pool = {.image = {element_at(x, image * shape.in.h * row, shape.type), shape.in.h,
                                                    shape.in.w, row, shape.channels},
                                          .channels = shape.channels,
                                          .window = w.args(),
                                          .y = element_at(y, at, shape.type),
                                          .y_row = y_row,
                                          .out_width = shape.out.w,
                                          .out_row_begin = rows.begin,
                                          .out_row_end = rows.end},
                                 .taps = taps + at});
    });
}

void max_pool_backward(const KernelTable& kernels, const PoolShape& shape, const void* grad, const std::uint8_t* taps,
                       void* dx, int threads) {
    const Window& w = shape.window;
    const ElementKernels& elements = kernels_of(kernels, shape.type);
    const index_t out_image = shape.out.h * shape.out.w * shape.channels;
    for_each_band(shape.batch, shape.in.h, threads, [&](index_t image, Range rows) {
        const index_t row = image * shape.in.h + rows.begin;
        elements.max_pool_grad({.grad = element_at(grad, image * out_image, shape.type),
                                .taps = taps + image * out_image,
                                .out_height = shape.out.h,
                                .out_width = shape.out.w,
                                .channels = shape.channels,
                                .window = w.args(),
                                .dx = element_at(dx, row * shape.in.w * shape.channels, shape.type),
                                .width = shape.in.w,
                                .row_begin = rows.begin,
                                .row_end = rows.end});
    });
}

}  // namespace resfuse
