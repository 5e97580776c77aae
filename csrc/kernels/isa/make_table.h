// Collects the kernels of the including translation unit, compiled under its own instruction-set flags, into one table.
#pragma once

#include "kernels/ceilings/peak.h"
#include "kernels/ceilings/read.h"
#include "kernels/gemm/pack.h"
#include "kernels/gemm/products.h"
#include "kernels/grouped/depthwise_row.h"
#include "kernels/isa/elements.h"
#include "kernels/isa/halves.h"
#include "kernels/isa/int8.h"

namespace resfuse {
namespace {

// Those of 16-bit elements and of bytes are compiled apart.
constexpr KernelTable make_table(const char* name, const HalfKernels& halves, const ByteKernels& bytes) {
    return KernelTable{
        .name = name,
        .vector_floats = kVectorFloats,
        .tile_rows = kTileRows,
        .tile_cols = kTileCols,
        .paired_tile_rows = 0,
        .elements = {element_kernels<Fp32>(), pooling_kernels<Fp64>(), halves.bf16, halves.fp16, bytes.elements},
        .int8 = bytes.int8,
        .winograd = {f2x2_kernels(), winograd_kernels<F4x4>(1), winograd_kernels<H4x4>(2)},
        .winograd_products = winograd_products,
        .winograd_row_input = winograd_row_input,
        .depthwise_row = depthwise_row,
        .join_windows = bytes.join_windows,
        .pack_direct = pack_direct,
        .pack_winograd_rows = pack_winograd_rows,
        .pack_strassen = pack_strassen,
        .pack_paired = nullptr,
        .paired_matrix_rows = nullptr,
        .column_squares = nullptr,
        .step_squares = nullptr,
        .outer_product = outer_product,
        .read_all = read_all,
        .multiply_adds_at_peak = multiply_adds_at_peak,
    };
}

}  // namespace
}  // namespace resfuse
