// The kernels of 16-bit elements of a level whose instructions multiply bf16 numbers.
#pragma once

#include "kernels/gemm/bf16_products.h"
#include "kernels/isa/halves.h"

namespace resfuse {
namespace {

HalfKernels with_bf16_products(HalfKernels halves) {
    halves.bf16.pair_units = units_of<Bf16Units>();
    halves.bf16.pair_gemm = bf16_dot_gemm;
    halves.bf16.pack_pairs = pack_bf16_units;
    return halves;
}

}  // namespace
}  // namespace resfuse
