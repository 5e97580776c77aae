// The kernels of one element type with products in pairs.
#pragma once

#include "kernels/isa/elements.h"
#include "kernels/paired/paired_rows.h"

namespace resfuse {
namespace {

template <class E>
constexpr ElementKernels paired_element_kernels() {
    ElementKernels kernels = element_kernels<E>();
    kernels.paired_rows = paired_rows<E>;
    kernels.paired_gemm = gemm<Product<Form::paired, E>>;
    return kernels;
}

}  // namespace
}  // namespace resfuse
