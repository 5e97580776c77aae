#include "engine/arena.h"

#include <algorithm>
#include <numeric>

namespace resfuse {

std::size_t arena_round_up(std::size_t floats) {
    constexpr std::size_t line = 16;
    return floats == 0 ? 0 : (floats + line - 1) / line * line + line;
}

std::size_t place_intervals(std::vector<Interval>& intervals) {
    std::vector<std::size_t> order(intervals.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return intervals[a].floats > intervals[b].floats; });
    std::size_t total = 0;
    std::vector<const Interval*> placed;  // sorted by offset
    for (const std::size_t i : order) {
        Interval& interval = intervals[i];
        const std::size_t size = arena_round_up(interval.floats);
        std::size_t offset = 0;
        for (const Interval* other : placed) {
            if (other->last < interval.first || other->first > interval.last) continue;
            if (offset + size <= other->offset) break;
            offset = std::max(offset, other->offset + arena_round_up(other->floats));
        }
        interval.offset = offset;
        total = std::max(total, offset + size);
        placed.insert(std::upper_bound(placed.begin(), placed.end(), &interval,
                                       [](const Interval* a, const Interval* b) { return a->offset < b->offset; }),
                      &interval);
    }
    return total;
}

}  // namespace resfuse
