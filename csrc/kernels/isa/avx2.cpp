#include "kernels/isa/halves.h"
#include "kernels/isa/make_table.h"

namespace resfuse {

KernelTable avx2_kernels() {
    const HalfKernels halves = avx2_half_kernels();
    return make_table("avx2", halves.bf16, halves.fp16);
}

}  // namespace resfuse
