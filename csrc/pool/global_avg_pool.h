// Global average pooling of a batch, outside of programs: any element type, any strides.
#pragma once

#include <array>

#include "machine/dispatch.h"

namespace resfuse {

// [N, C, H, W] in memory; strides in elements.
struct StridedImages {
    DType dtype;
    std::array<index_t, 4> shape;
    std::array<index_t, 4> strides;

    index_t pixels() const { return shape[2] * shape[3]; }
    index_t elements() const { return shape[0] * shape[1] * pixels(); }
    index_t bytes() const;
};

index_t element_size(DType dtype);

// y[n * C + c] = mean over the pixels of x[n, c]. The result does not depend on the number of threads.
void global_avg_pool(const KernelTable& kernels, const void* x, const StridedImages& images, void* y, int threads);

// dx[n, c, h, w] = grad[n * grad_strides[0] + c * grad_strides[1]] / (H * W).
void global_avg_pool_backward(const KernelTable& kernels, const void* grad, std::array<index_t, 2> grad_strides,
                              void* dx, const StridedImages& images, int threads);

// A checksum of memory, read by all threads: the bound that the kernels above are compared with.
std::uint32_t read_all(const KernelTable& kernels, const void* data, index_t bytes, int threads);

}  // namespace resfuse
