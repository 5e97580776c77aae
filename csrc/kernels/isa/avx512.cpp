#include "kernels/isa/make_table.h"
#include "kernels/paired/paired_rows.h"
#include "kernels/paired/paired_weights.h"

namespace resfuse {

namespace {

// Of cores that have adders beside their multipliers.
constexpr KernelTable with_pairs(KernelTable table) {
    table.paired_tile_rows = kPairedTileRows;
    ElementKernels& fp32 = table.elements[static_cast<int>(DType::fp32)];
    fp32.paired_rows = paired_rows<Fp32>;
    fp32.paired_gemm = gemm<Product<Form::paired, Fp32>>;
    table.column_squares = column_squares;
    table.step_squares = step_squares;
    table.pack_paired = pack_paired;
    table.paired_matrix_rows = matrix_rows<Form::paired>;
    return table;
}

}  // namespace

const KernelTable& avx512_kernels() {
    static constexpr KernelTable table = make_table("avx512");
    return table;
}

const KernelTable& zen4_kernels() {
    static constexpr KernelTable table = with_pairs(make_table("zen4"));
    return table;
}

}  // namespace resfuse
