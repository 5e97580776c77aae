#include "kernels/isa/make_table.h"
#include "kernels/isa/paired_elements.h"
#include "kernels/paired/paired_weights.h"

namespace resfuse {

namespace {

// Of cores that have adders beside their multipliers.
KernelTable with_pairs(KernelTable table) {
    table.paired_tile_rows = kPairedTileRows;
    table.elements[static_cast<int>(DType::fp32)] = paired_element_kernels<Fp32>();
    table.column_squares = column_squares;
    table.step_squares = step_squares;
    table.pack_paired = pack_paired;
    table.paired_matrix_rows = matrix_rows<Form::paired>;
    return table;
}

}  // namespace

KernelTable avx512_kernels() { return make_table("avx512", avx512_half_kernels(), avx512_byte_kernels()); }

KernelTable avx512_vnni_kernels() {
    return make_table("avx512_vnni", avx512_half_kernels(), avx512_vnni_byte_kernels());
}

KernelTable avx512_bf16_kernels() {
    return make_table("avx512_bf16", avx512_bf16_half_kernels(), avx512_vnni_byte_kernels());
}

KernelTable avx512_amx_kernels() {
    return make_table("avx512_amx", avx512_amx_half_kernels(), avx512_amx_byte_kernels());
}

KernelTable zen4_kernels() {
    return with_pairs(make_table("zen4", avx512_bf16_half_kernels(), avx512_vnni_byte_kernels()));
}

}  // namespace resfuse
