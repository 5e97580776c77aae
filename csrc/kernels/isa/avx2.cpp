#include "kernels/isa/make_table.h"

namespace resfuse {

KernelTable avx2_kernels() { return make_table("avx2", avx2_half_kernels(), avx2_byte_kernels()); }

KernelTable avx2_vnni_kernels() { return make_table("avx2_vnni", avx2_half_kernels(), avx2_vnni_byte_kernels()); }

}  // namespace resfuse
