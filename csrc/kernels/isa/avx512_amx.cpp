#include "kernels/amx/gemm.h"
#include "kernels/amx/windows.h"
#include "kernels/isa/with_bf16_products.h"
#include "kernels/isa/with_dot_products.h"

namespace resfuse {

namespace {

// A lane's share of a tile's products a cycle is 32 of bytes and 16 of bf16; so many are left of it, the loads, the
// stores and the outputs counted in.
constexpr Units matrix_units(index_t operands, double terms) {
    return {.operands = operands, .terms = terms, .tile_rows = kMatrixRows, .takes_lines = true};
}

}  // namespace

ByteKernels avx512_amx_byte_kernels() {
    ByteKernels kernels = with_dot_products(avx512_byte_kernels());
    kernels.int8.units = matrix_units(4, 16.0);
    kernels.int8.gemm = amx_int8_gemm;
    kernels.join_windows = join_windows;
    return kernels;
}

HalfKernels avx512_amx_half_kernels() {
    HalfKernels kernels = with_bf16_products(avx512_half_kernels());
    kernels.bf16.pair_units = matrix_units(2, 8.0);
    kernels.bf16.pair_gemm = amx_bf16_gemm;
    return kernels;
}

}  // namespace resfuse
