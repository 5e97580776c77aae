// What a plan knows of a buffer.
#pragma once

#include "program/program.h"

namespace resfuse {

struct InputShape {
    index_t height, width;
    bool dense;  // NHWC in memory, channels contiguous, images one after the other
};

struct PlannedBuffer {
    index_t channels;
    DType type;
    Extent extent{0, 0};
    // Where it lives: in a tensor of the caller, or in the workspace.
    int external_input = -1, external_output = -1;
    bool dense = true;          // NHWC, its pixels some elements apart
    index_t pixel = 0;          // those elements, where it is dense
    int view_of = -1;           // the buffer that it lies in, as some of the channels, or -1
    index_t first_channel = 0;  // of these
    bool whole_batch = false;   // crosses segments, so it holds all images
    std::size_t offset = 0;     // bytes into the workspace

    bool is_external() const { return external_input >= 0 || external_output >= 0; }
    bool is_view() const { return view_of >= 0; }
    index_t image() const { return extent.h * extent.w * pixel; }  // elements
    std::size_t image_bytes() const { return static_cast<std::size_t>(image()) * element_bytes(type); }
};

}  // namespace resfuse
