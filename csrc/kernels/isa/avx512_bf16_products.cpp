#include "kernels/gemm/bf16_products.h"
#include "kernels/isa/halves.h"

namespace resfuse {

HalfKernels avx512_bf16_half_kernels() {
    HalfKernels halves = avx512_half_kernels();
    halves.bf16.pair_gemm = bf16_dot_gemm;
    halves.bf16.pack_pairs = pack_bf16_pairs;
    return halves;
}

}  // namespace resfuse
