#include "kernels/isa/with_bf16_products.h"

namespace resfuse {

HalfKernels avx512_bf16_half_kernels() { return with_bf16_products(avx512_half_kernels()); }

}  // namespace resfuse
