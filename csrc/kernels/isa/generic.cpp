#include "kernels/isa/halves.h"
#include "kernels/isa/make_table.h"

namespace resfuse {

const KernelTable& generic_kernels() {
    static const HalfKernels halves = generic_half_kernels();
    static const KernelTable table = make_table("generic", halves.bf16, halves.fp16);
    return table;
}

}  // namespace resfuse
