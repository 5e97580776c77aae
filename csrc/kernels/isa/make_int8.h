// Collects the kernels of bytes of the including translation unit.
#pragma once

#include "kernels/int8/copy.h"
#include "kernels/int8/gemm.h"
#include "kernels/int8/grouped.h"
#include "kernels/int8/pools.h"
#include "kernels/int8/winograd.h"
#include "kernels/int8/winograd_products.h"
#include "kernels/isa/int8.h"

namespace resfuse {
namespace {

constexpr ByteKernels make_byte_kernels() {
    using Operand = DirectDot::Operand;
    return {{.operand_bytes = sizeof(Operand),
             .units = units_of<DirectDot>(),
             .taken_from_operands = DirectDot::kTakenFromOperands,
             .gemm = int8_gemm,
             .pack = pack_int8,
             .packed_bytes = int8_packed_bytes,
             .copy_floats = copy_int8_band<QuantizeMove<Operand>>,
             .copy_bytes = copy_int8_band<ByteMove<Operand>>,
             .grouped = int8_grouped,
             .avg_pool = int8_avg_pool,
             .mean = int8_mean,
             .affine = int8_affine,
             .winograd = int8_winograd_kernels(),
             .winograd_terms = units_of<Words>().terms,
             .winograd_transforms = int8_winograd_transforms<I4x4>(),
             .winograd_products = int8_winograd_products,
             .pack_winograd = pack_int8_winograd},
            {.max_pool = max_pool_bytes}};
}

}  // namespace
}  // namespace resfuse
