#include "kernels/isa/make_int8.h"

namespace resfuse {

ByteKernels avx2_vnni_byte_kernels() { return make_byte_kernels(); }

}  // namespace resfuse
