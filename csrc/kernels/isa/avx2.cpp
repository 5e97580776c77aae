#include "kernels/isa/make_table.h"

namespace resfuse {

const KernelTable& avx2_kernels() {
    static constexpr KernelTable table = make_table("avx2");
    return table;
}

}  // namespace resfuse
