// The kernels of 16-bit elements, compiled apart from the others.
#pragma once

#include "kernels/table.h"

namespace resfuse {

struct HalfKernels {
    ElementKernels bf16, fp16;
};

HalfKernels generic_half_kernels();
#if defined(RESFUSE_X86)
HalfKernels avx2_half_kernels();
HalfKernels avx512_half_kernels();       // with those of products in pairs
HalfKernels avx512_bf16_half_kernels();  // and with products of bf16
HalfKernels avx512_amx_half_kernels();   // and with those of matrices
#elif defined(RESFUSE_ARM64)
HalfKernels neon_half_kernels();
HalfKernels neon_bf16_half_kernels();  // with products of bf16
#endif

}  // namespace resfuse
