#include "kernels/isa/make_table.h"
#include "kernels/paired/paired_rows.h"
#include "kernels/paired/paired_weights.h"

namespace resfuse {

namespace {

// Of cores that have adders beside their multipliers.
constexpr KernelTable with_pairs(KernelTable table) {
    table.paired_tile_rows = kPairedTileRows;
    table.paired_rows = paired_rows;
    table.paired_gemm = gemm<Form::paired>;
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
