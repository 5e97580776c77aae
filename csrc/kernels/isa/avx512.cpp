#include "kernels/make_table.h"

namespace resfuse {

const KernelTable& avx512_kernels() {
    static constexpr KernelTable table = make_table("avx512");
    return table;
}

}  // namespace resfuse
