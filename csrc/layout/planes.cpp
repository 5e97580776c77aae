#include "layout/planes.h"

#include <algorithm>

#include "machine/threads.h"

namespace resfuse {

void copy_to_planes(const KernelTable& kernels, const float* x, index_t images, index_t channels, index_t pixels,
                    float* y, int threads) {
    constexpr index_t kLeastFloats = 16 * 1024;  // of a task: less is not worth a thread
    const index_t most = std::max<index_t>(images * channels * pixels / kLeastFloats, 1);
    const int used = static_cast<int>(std::min<index_t>(usable_threads(threads), most));
    // Whole lines of the result, by pixels: a task's part of the input is in one piece.
    const index_t lines = ceil_div(pixels, kLineFloats), parts = std::min<index_t>(lines, 4 * used);
#pragma omp parallel for num_threads(used) schedule(static)
    for (index_t task = 0; task < images * parts; ++task) {
        const index_t image = task / parts * channels * pixels;
        const Range some = part(lines, task % parts, parts);
        const index_t first = some.begin * kLineFloats, end = std::min(some.end * kLineFloats, pixels);
        kernels.transpose({.x = x + image + first * channels,
                           .rows = end - first,
                           .cols = channels,
                           .pitch = channels,
                           .y = y + image + first,
                           .y_pitch = pixels});
    }
}

}  // namespace resfuse
