#include "kernels/isa/with_dot_products.h"

namespace resfuse {

ByteKernels neon_i8mm_byte_kernels() { return with_dot_products(neon_byte_kernels()); }

}  // namespace resfuse
