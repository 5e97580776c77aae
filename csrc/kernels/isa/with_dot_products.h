// The kernels of bytes of a level whose multiplications the including translation unit's instructions do better.
#pragma once

#include "kernels/int8/copy.h"
#include "kernels/int8/gemm.h"
#include "kernels/int8/winograd_products.h"
#include "kernels/isa/int8.h"

namespace resfuse {
namespace {

ByteKernels with_dot_products(ByteKernels kernels) {
    using Operand = DirectDot::Operand;
    kernels.int8.operand_bytes = sizeof(Operand);
    kernels.int8.units = units_of<DirectDot>();
    kernels.int8.taken_from_operands = DirectDot::kTakenFromOperands;
    kernels.int8.gemm = int8_gemm;
    kernels.int8.pack = pack_int8;
    kernels.int8.packed_bytes = int8_packed_bytes;
    kernels.int8.copy_floats = copy_int8_band<QuantizeMove<Operand>>;
    kernels.int8.copy_bytes = copy_int8_band<ByteMove<Operand>>;
    kernels.int8.winograd_products = int8_winograd_products;
    return kernels;
}

}  // namespace
}  // namespace resfuse
