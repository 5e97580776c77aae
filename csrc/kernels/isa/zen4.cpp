// AVX-512 on cores that have adders beside their multipliers: products in pairs of terms (kernels/paired_tile.h).
#include "kernels/strassen.h"

namespace resfuse {

const KernelTable& zen4_kernels() {
    static const KernelTable table = [] {
        KernelTable t = avx512_kernels();
        t.name = "zen4";
        t.strassen_operands = strassen_paired_operands;
        t.strassen_products = strassen_products<Form::paired>;
        t.pack_strassen = pack_strassen<Form::paired>;
        t.strassen_matrix_rows = matrix_rows<Form::paired>;
        t.paired = true;
        t.paired_tile_rows = kPairedTileRows;
        return t;
    }();
    return table;
}

}  // namespace resfuse
