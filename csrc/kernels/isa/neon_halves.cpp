#include "kernels/isa/elements.h"
#include "kernels/isa/halves.h"

namespace resfuse {

HalfKernels neon_half_kernels() { return {element_kernels<Bf16>(), element_kernels<Fp16>()}; }

}  // namespace resfuse
