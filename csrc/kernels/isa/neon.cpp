#include "kernels/isa/make_table.h"

namespace resfuse {

KernelTable neon_kernels() { return make_table("neon", neon_half_kernels(), neon_byte_kernels()); }

KernelTable neon_dotprod_kernels() {
    return make_table("neon_dotprod", neon_half_kernels(), neon_dotprod_byte_kernels());
}

KernelTable neon_i8mm_kernels() { return make_table("neon_i8mm", neon_half_kernels(), neon_i8mm_byte_kernels()); }

KernelTable neon_bf16_kernels() { return make_table("neon_bf16", neon_bf16_half_kernels(), neon_i8mm_byte_kernels()); }

}  // namespace resfuse
