#include "kernels/isa/halves.h"
#include "kernels/isa/make_table.h"
#include "kernels/isa/paired_elements.h"
#include "kernels/paired/paired_weights.h"

namespace resfuse {

namespace {

KernelTable table_of(const char* name) {
    const HalfKernels halves = avx512_half_kernels();
    return make_table(name, halves.bf16, halves.fp16);
}

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

KernelTable avx512_kernels() { return table_of("avx512"); }

KernelTable zen4_kernels() { return with_pairs(table_of("zen4")); }

}  // namespace resfuse
