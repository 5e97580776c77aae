#include "memory/arena.h"

#include <algorithm>
#include <numeric>

namespace resfuse {

namespace {

constexpr std::size_t kLine = 64;

}  // namespace

std::size_t arena_round_up(std::size_t bytes) { return bytes == 0 ? 0 : (bytes + kLine - 1) / kLine * kLine + kLine; }

namespace {

// Largest first.
std::vector<std::size_t> by_size(const std::vector<Interval>& intervals) {
    std::vector<std::size_t> order(intervals.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return intervals[a].bytes > intervals[b].bytes; });
    return order;
}

bool alive_together(const Interval& a, const Interval& b) { return a.last >= b.first && a.first <= b.last; }

// Each to the lowest free place.
std::size_t place_densely(std::vector<Interval>& intervals) {
    std::size_t total = 0;
    std::vector<const Interval*> placed;  // sorted by offset
    for (const std::size_t i : by_size(intervals)) {
        Interval& interval = intervals[i];
        const std::size_t size = arena_round_up(interval.bytes);
        std::size_t offset = 0;
        for (const Interval* other : placed) {
            if (!alive_together(*other, interval)) continue;
            if (offset + size <= other->offset) break;
            offset = std::max(offset, other->offset + arena_round_up(other->bytes));
        }
        interval.offset = offset;
        total = std::max(total, offset + size);
        placed.insert(std::upper_bound(placed.begin(), placed.end(), &interval,
                                       [](const Interval* a, const Interval* b) { return a->offset < b->offset; }),
                      &interval);
    }
    return total;
}

// Each to a slot, around the middle of it.
std::size_t place_centred(std::vector<Interval>& intervals) {
    struct Slot {
        std::size_t offset, size;
        std::vector<const Interval*> held;
    };
    std::vector<Slot> slots;
    std::size_t total = 0;
    for (const std::size_t i : by_size(intervals)) {
        Interval& interval = intervals[i];
        const std::size_t size = arena_round_up(interval.bytes);
        const auto free = std::find_if(slots.begin(), slots.end(), [&](const Slot& slot) {
            return slot.held.front()->halves == interval.halves &&
                   std::none_of(slot.held.begin(), slot.held.end(),
                                [&](const Interval* other) { return alive_together(*other, interval); });
        });
        if (free == slots.end()) {
            interval.offset = total;
            slots.push_back({total, size, {&interval}});
            total += size;
        } else {
            interval.offset = free->offset + (free->size - size) / 2 / kLine * kLine;
            free->held.push_back(&interval);
        }
    }
    return total;
}

}  // namespace

std::size_t place_intervals(std::vector<Interval>& intervals) {
    constexpr double kMostForHalves = 1.2;
    constexpr std::size_t kLittle = std::size_t{16} << 20;
    std::vector<Interval> centred = intervals;
    const std::size_t total = place_centred(centred), dense = place_densely(intervals);
    if (total > kLittle && static_cast<double>(total) > kMostForHalves * static_cast<double>(dense)) return dense;
    intervals = centred;
    return total;
}

}  // namespace resfuse
