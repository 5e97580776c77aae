#include "kernels/isa/make_table.h"

namespace resfuse {

KernelTable avx2_kernels() { return make_table("avx2", avx2_half_kernels(), avx2_byte_kernels()); }

}  // namespace resfuse
