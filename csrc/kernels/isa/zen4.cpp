// AVX-512 on cores that have adders beside their multipliers: products in pairs of terms (kernels/paired_tile.h).
#include "kernels/paired_rows.h"

namespace resfuse {

const KernelTable& zen4_kernels() {
    static const KernelTable table = [] {
        KernelTable t = avx512_kernels();
        t.name = "zen4";
        t.paired = true;
        t.paired_tile_rows = kPairedTileRows;
        t.paired_rows = paired_rows;
        t.paired_gemm = gemm<Form::paired>;
        t.pack_paired = pack_paired;
        t.paired_matrix_rows = matrix_rows<Form::paired>;
        return t;
    }();
    return table;
}

}  // namespace resfuse
