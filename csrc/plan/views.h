// A job of a plan: which buffers lie in another one as some of its channels, so that nothing is copied.
#pragma once

#include <vector>

#include "plan/buffer.h"

namespace resfuse {

// Sets `view_of` and `first_channel`. A slice lies in what it is cut from. What a concatenation joins lies in it,
// unless it lies elsewhere already or in a tensor of the caller.
void find_views(std::vector<PlannedBuffer>& buffers, const std::vector<Layer>& layers);

// Whether a buffer's elements are those of another one, from one of its channels on.
bool lies_in(const std::vector<PlannedBuffer>& buffers, int part, int whole, index_t first_channel);

// The buffer whose memory holds another one: mostly that itself.
inline int root_of(const std::vector<PlannedBuffer>& buffers, int buffer) {
    const int view_of = buffers[static_cast<std::size_t>(buffer)].view_of;
    return view_of >= 0 ? view_of : buffer;
}

}  // namespace resfuse
