#include "kernels/isa/with_dot_products.h"

namespace resfuse {

ByteKernels avx2_vnni_byte_kernels() { return with_dot_products(avx2_byte_kernels()); }

}  // namespace resfuse
