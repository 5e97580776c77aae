#include "kernels/isa/make_table.h"

namespace resfuse {

const KernelTable& generic_kernels() {
    static constexpr KernelTable table = make_table("generic");
    return table;
}

}  // namespace resfuse
