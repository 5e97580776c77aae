// The kernels of bytes, compiled apart from the others.
#pragma once

#include "kernels/table.h"

namespace resfuse {

struct ByteKernels {
    Int8Kernels int8;
    ElementKernels elements;                                 // of feature maps, where they are like other types'
    void (*join_windows)(const JoinWindowsArgs&) = nullptr;  // KernelTable's: bytes of any elements
};

ByteKernels generic_byte_kernels();
#if defined(RESFUSE_X86)
ByteKernels avx2_byte_kernels();
ByteKernels avx2_vnni_byte_kernels();
ByteKernels avx512_byte_kernels();
ByteKernels avx512_vnni_byte_kernels();
ByteKernels avx512_amx_byte_kernels();
#elif defined(RESFUSE_ARM64)
ByteKernels neon_byte_kernels();
ByteKernels neon_dotprod_byte_kernels();
ByteKernels neon_i8mm_byte_kernels();
#endif

}  // namespace resfuse
