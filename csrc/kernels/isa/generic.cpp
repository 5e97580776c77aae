#include "kernels/isa/make_table.h"

namespace resfuse {

KernelTable generic_kernels() { return make_table("generic", generic_half_kernels(), generic_byte_kernels()); }

}  // namespace resfuse
