#include "kernels/isa/make_int8.h"

namespace resfuse {

ByteKernels neon_byte_kernels() { return make_byte_kernels(); }

}  // namespace resfuse
