#include "kernels/isa/with_dot_products.h"

namespace resfuse {

ByteKernels avx512_vnni_byte_kernels() { return with_dot_products(avx512_byte_kernels()); }

}  // namespace resfuse
