#include "layout/planes.h"

#include <algorithm>

#include "machine/threads.h"

namespace resfuse {

void copy_lines_to_planes(const KernelTable& kernels, const float* x, index_t pixel, Range lines, index_t channels,
                          index_t pixels, float* y) {
    const index_t first = lines.begin * kLineFloats, end = std::min(lines.end * kLineFloats, pixels);
    kernels.transpose({.x = x + first * pixel,
                       .rows = end - first,
                       .cols = channels,
                       .pitch = pixel,
                       .y = y + first,
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
        copy_lines_to_planes(kernels, x + image, channels, part(lines, task % parts, parts), channels, pixels,
                             y + image);
    }
}

}  // namespace resfuse
