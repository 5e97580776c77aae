#include "kernels/isa/with_bf16_products.h"

namespace resfuse {

HalfKernels neon_bf16_half_kernels() { return with_bf16_products(neon_half_kernels()); }

}  // namespace resfuse
