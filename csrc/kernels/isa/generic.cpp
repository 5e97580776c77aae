#include "kernels/isa/halves.h"
#include "kernels/isa/make_table.h"

namespace resfuse {

KernelTable generic_kernels() {
    const HalfKernels halves = generic_half_kernels();
    return make_table("generic", halves.bf16, halves.fp16);
}

}  // namespace resfuse
