// Collects the kernels of the including translation unit, compiled under its own instruction-set flags, into one table.
#pragma once

#include "kernels/activation/activation.h"
#include "kernels/ceilings/peak.h"
#include "kernels/ceilings/read.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/pack.h"
#include "kernels/gemm/products.h"
#include "kernels/grouped/grouped.h"
#include "kernels/grouped/grouped_f2.h"
#include "kernels/isa/winograd_kinds.h"
#include "kernels/layout/layout.h"
#include "kernels/layout/transpose.h"
#include "kernels/norm/batch_norm.h"
#include "kernels/pool/avg_pool.h"
#include "kernels/pool/global_avg_pool.h"
#include "kernels/pool/global_avg_pool_backward.h"
#include "kernels/pool/max_pool.h"
#include "kernels/pool/max_pool_training.h"
#include "kernels/strassen/strassen.h"
#include "kernels/table.h"
#include "kernels/winograd/winograd_rows.h"

namespace resfuse {
namespace {

constexpr KernelTable make_table(const char* name) {
    return KernelTable{
        .name = name,
        .vector_floats = kVectorFloats,
        .tile_rows = kTileRows,
        .tile_cols = kTileCols,
        .gemm = gemm<Form::plain>,
        .winograd_products = winograd_products,
        .winograd = {f2x2_kernels(), winograd_kernels_with_edges<F4x4>(), winograd_kernels_with_edges<H4x4>()},
        .winograd_row_input = winograd_row_input,
        .winograd_row_output = winograd_row_output,
        .pack_winograd_rows = pack_winograd_rows,
        .pack_direct = pack_direct,
        .strassen_operands = strassen_operands,
        .strassen_products = strassen_products,
        .pack_strassen = pack_strassen,
        .paired_tile_rows = 0,
        .paired_rows = nullptr,
        .paired_gemm = nullptr,
        .column_squares = nullptr,
        .step_squares = nullptr,
        .pack_paired = nullptr,
        .paired_matrix_rows = nullptr,
        .copy_band = copy_band,
        .transpose = transpose_floats,
        .grouped = grouped,
        .grouped_f2 = grouped_f2,
        .norm_sums = norm_sums,
        .norm_apply = norm_apply,
        .norm_grad_sums = norm_grad_sums,
        .norm_grad = norm_grad,
        .outer_product = outer_product,
        .pack_rows = pack_rows,
        .copy_windows = copy_windows,
        .max_pool_index = max_pool_index,
        .max_pool_grad = max_pool_grad,
        .max_pool = max_pool,
        .avg_pool = avg_pool,
        .pool_sum = {pool_sum<Fp32>, pool_sum<Fp64>, pool_sum<Bf16>, pool_sum<Fp16>},
        .pool_mean = {pool_mean<Fp32>, pool_mean<Fp64>, pool_mean<Bf16>, pool_mean<Fp16>},
        .pool_spread = {pool_spread<Fp32>, pool_spread<Fp64>, pool_spread<Bf16>, pool_spread<Fp16>},
        .read_all = read_all,
        .multiply_adds_at_peak = multiply_adds_at_peak,
        .activate = activate,
    };
}

}  // namespace
}  // namespace resfuse
