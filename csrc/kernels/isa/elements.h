// The kernels of one element type of feature maps.
#pragma once

#include "kernels/activation/activation.h"
#include "kernels/gemm/gemm.h"
#include "kernels/grouped/grouped.h"
#include "kernels/grouped/vector_f2.h"
#include "kernels/isa/winograd_kinds.h"
#include "kernels/layout/layout.h"
#include "kernels/layout/transpose.h"
#include "kernels/norm/batch_norm.h"
#include "kernels/norm/layer_norm.h"
#include "kernels/pool/avg_pool.h"
#include "kernels/pool/global_avg_pool.h"
#include "kernels/pool/global_avg_pool_backward.h"
#include "kernels/pool/max_pool.h"
#include "kernels/pool/max_pool_training.h"
#include "kernels/resize/resize.h"
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
    kernels.winograd[1].gradient = winograd_gradient<E, F4x4>;
    kernels.winograd[2] = transforms_with_edges<E, H4x4>();
    kernels.winograd_row_output = winograd_row_output<E>;
    kernels.strassen_operands = strassen_operands<E>;
    kernels.strassen_products = strassen_products<E>;
    kernels.grouped = grouped<E>;
    kernels.grouped_f2 = grouped_f2<E>;
    kernels.copy_band = copy_band<E, Fp32>;
    kernels.copy_image = copy_band<E, E>;
    kernels.transpose = sizeof(typename E::Storage) == sizeof(float) ? transpose_floats : transpose_halves;
    kernels.norm_apply = norm_apply<E>;
    kernels.norm_sums = norm_sums<E>;
    kernels.layer_norm = layer_norm<E>;
    kernels.resize_row = resize_row<E>;
    kernels.max_pool = max_pool<E>;
    kernels.avg_pool = avg_pool<E>;
    kernels.activate = activate<E>;
    kernels.norm_grad_sums = norm_grad_sums<E>;
    kernels.norm_grad = norm_grad<E>;
    kernels.copy_windows = copy_windows<E>;
    kernels.pack_rows = pack_rows<E>;
    kernels.max_pool_index = max_pool_index<E>;
    kernels.max_pool_grad = max_pool_grad<E>;
    return kernels;
}

}  // namespace
}  // namespace resfuse
