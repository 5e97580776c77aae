// Placement of buffers with known lifetimes in one block of memory: buffers that are never alive together may overlap.
#pragma once

#include <cstddef>
#include <vector>

namespace resfuse {

struct Interval {
    std::size_t first, last;  // steps, inclusive
    std::size_t bytes;
    bool halves = false;     // one half of the threads works on the first half of it, the other on the second
    std::size_t offset = 0;  // filled in by place_intervals
};

// Rounds up to whole cache lines, plus one line so that neighbouring buffers do not share cache sets.
std::size_t arena_round_up(std::size_t bytes);

// Sets every offset (largest first, lowest free place) and returns the bytes needed in all.
std::size_t place_intervals(std::vector<Interval>& intervals);

}  // namespace resfuse
