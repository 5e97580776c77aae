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

void max_pool_forward(const KernelTable& kernels, const PoolShape& shape, const float* x, float* y, std::uint8_t* taps,
                      int threads) {
    const Window& w = shape.window;
    const index_t row = shape.in.w * shape.channels, y_row = shape.out.w * shape.channels;
    for_each_band(shape.batch, shape.out.h, threads, [&](index_t image, Range rows) {
        const index_t at = (image * shape.out.h + rows.begin) * y_row;
        kernels.max_pool_index(
            {.pool = {.image = {x + image * shape.in.h * row, shape.in.h, shape.in.w, row, shape.channels},
                      .channels = shape.channels,
                      .window = w.args(),
                      .y = y + at,
                      .y_row = y_row,
                      .out_width = shape.out.w,
                      .out_row_begin = rows.begin,
                      .out_row_end = rows.end},
             .taps = taps + at});
    });
}

void max_pool_backward(const KernelTable& kernels, const PoolShape& shape, const float* grad, const std::uint8_t* taps,
                       float* dx, int threads) {
    const Window& w = shape.window;
    const index_t image_floats = shape.out.h * shape.out.w * shape.channels;
    for_each_band(shape.batch, shape.in.h, threads, [&](index_t image, Range rows) {
        kernels.max_pool_grad({.grad = grad + image * image_floats,
                               .taps = taps + image * image_floats,
                               .out_height = shape.out.h,
                               .out_width = shape.out.w,
                               .channels = shape.channels,
                               .window = w.args(),
                               .dx = dx + (image * shape.in.h + rows.begin) * shape.in.w * shape.channels,
                               .width = shape.in.w,
                               .row_begin = rows.begin,
                               .row_end = rows.end});
    });
}

}  // namespace resfuse
