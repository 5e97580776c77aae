#include "layout/planes.h"

#include <algorithm>

#include "machine/threads.h"

namespace resfuse {

void copy_lines_to_planes(const KernelTable& kernels, DType type, const void* x, index_t pixel, Range lines,
                          index_t channels, index_t pixels, void* y) {
    const index_t first = lines.begin * kLineFloats, end = std::min(lines.end * kLineFloats, pixels);
    kernels_of(kernels, type)
        .transpose({.x = element_at(x, first * pixel, type),
                    .rows = end - first,
                    .cols = channels,
                    .pitch = pixel,
                    .y = element_at(y, first, type),
                    .y_pitch = pixels});
}

void copy_to_planes(const KernelTable& kernels, const float* x, index_t images, index_t channels, index_t pixels,
                    float* y, int threads) {
    constexpr index_t kLeastFloats = 16 * 1024;  // of a task: less is not worth a thread
    const index_t most = std::max<index_t>(images * channels * pixels / kLeastFloats, 1);
    const int used = static_cast<int>(std::min<index_t>(usable_threads(threads), most));
    // By pixels: a task's part of the input is in one piece.
    const index_t lines = lines_of_plane(pixels), parts = std::min<index_t>(lines, 4 * used);
#pragma omp parallel for num_threads(used) schedule(static)
    for (index_t task = 0; task < images * parts; ++task) {
        const index_t image = task / parts * channels * pixels;
        copy_lines_to_planes(kernels, DType::fp32, x + image, channels, part(lines, task % parts, parts), channels,
                             pixels, y + image);
    }
}

}  // namespace resfuse
