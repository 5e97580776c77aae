#include "kernels/isa/halves.h"
#include "kernels/isa/make_table.h"

namespace resfuse {

const KernelTable& avx2_kernels() {
    static const HalfKernels halves = avx2_half_kernels();
    static const KernelTable table = make_table("avx2", halves.bf16, halves.fp16);
    return table;
}

}  // namespace resfuse
