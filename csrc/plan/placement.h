// A job of a plan: where in one workspace each of its own buffers lies, and the steps' scratch.
#pragma once

#include <cstddef>
#include <vector>

#include "plan/buffer.h"
#include "plan/segments.h"

namespace resfuse {

// The steps that write and read a buffer.
struct Lifetime {
    static constexpr std::size_t kNever = ~std::size_t{0};

    std::size_t first = kNever, last = 0;

    void touch(std::size_t step);
    bool is_used() const { return first != kNever; }
};

struct StepScratch {
    std::size_t thread, shared;  // bytes for each thread, and for all of them together
};

struct Workspace {
    std::size_t bytes = 0;
    std::size_t thread_scratch_offset = 0, thread_scratch = 0;  // bytes for each thread, one after the other
    std::vector<std::size_t> shared_scratch_offsets;            // per step
};

// Sets `whole_batch` and `offset` of the buffers that are not the caller's. Buffers that are never alive together may
// share their place; a sum whose residual nothing reads behind it takes that residual's: less memory, and lines that
// are in cache already. (Every step reads an element of the residual before it writes the same element of its output,
// and no other.) `step_of_first_layer` is that of the program's first layer; those of the others follow.
Workspace place_buffers(std::vector<PlannedBuffer>& buffers, const std::vector<Lifetime>& lifetimes,
                        const std::vector<Layer>& layers, std::size_t step_of_first_layer,
                        const std::vector<Segment>& segments, const std::vector<StepScratch>& scratch, index_t batch,
                        int threads);

}  // namespace resfuse
