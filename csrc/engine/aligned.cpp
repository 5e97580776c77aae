#include "engine/aligned.h"

#include <sys/mman.h>

namespace resfuse {

void AlignedFloats::advise_huge_pages(void* data, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
    if (bytes >= kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

}  // namespace resfuse
