#include "kernels/isa/halves.h"
#include "kernels/isa/paired_elements.h"

namespace resfuse {

HalfKernels avx512_half_kernels() { return {paired_element_kernels<Bf16>(), paired_element_kernels<Fp16>()}; }

}  // namespace resfuse
