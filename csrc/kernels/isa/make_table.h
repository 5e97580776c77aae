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

template <class E>
constexpr ElementKernels pooling_kernels() {
    return {.pool_sum = pool_sum<E>, .pool_mean = pool_mean<E>, .pool_spread = pool_spread<E>};
}

template <class E>
constexpr ElementKernels element_kernels() {
    ElementKernels kernels = pooling_kernels<E>();
    kernels.gemm = gemm<Product<Form::plain, E>>;
    kernels.winograd[0] = {{{winograd_input<E, F2x2, F2, F2>}}, {{winograd_output<E, F2x2, F2, F2>}}};
    kernels.winograd[1] = transforms_with_edges<E, F4x4>();
    kernels.winograd[2] = transforms_with_edges<E, H4x4>();
    kernels.winograd_row_output = winograd_row_output<E>;
    kernels.strassen_operands = strassen_operands<E>;
    kernels.strassen_products = strassen_products<E>;
    kernels.grouped = grouped<E>;
    kernels.grouped_f2 = grouped_f2<E>;
    kernels.copy_band = copy_band<E>;
    kernels.copy_image = copy_band<E>;
    kernels.transpose = transpose_floats;
    kernels.norm_apply = norm_apply<E>;
    kernels.max_pool = max_pool<E>;
    kernels.avg_pool = avg_pool<E>;
    kernels.activate = activate<E>;
    return kernels;
}

constexpr KernelTable make_table(const char* name) {
    return KernelTable{
        .name = name,
        .vector_floats = kVectorFloats,
        .tile_rows = kTileRows,
        .tile_cols = kTileCols,
        .paired_tile_rows = 0,
        .elements = {element_kernels<Fp32>(), pooling_kernels<Fp64>(), pooling_kernels<Bf16>(),
                     pooling_kernels<Fp16>()},
        .winograd = {f2x2_kernels(), winograd_kernels<F4x4>(1), winograd_kernels<H4x4>(2)},
        .winograd_products = winograd_products,
        .winograd_row_input = winograd_row_input,
        .copy_windows = copy_windows,
        .pack_direct = pack_direct,
        .pack_winograd_rows = pack_winograd_rows,
        .pack_strassen = pack_strassen,
        .pack_paired = nullptr,
        .paired_matrix_rows = nullptr,
        .column_squares = nullptr,
        .step_squares = nullptr,
        .norm_sums = norm_sums,
        .norm_grad_sums = norm_grad_sums,
        .norm_grad = norm_grad,
        .outer_product = outer_product,
        .pack_rows = pack_rows,
        .max_pool_index = max_pool_index,
        .max_pool_grad = max_pool_grad,
        .read_all = read_all,
        .multiply_adds_at_peak = multiply_adds_at_peak,
    };
}

}  // namespace
}  // namespace resfuse
