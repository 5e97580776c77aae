#include "plan/placement.h"

#include <algorithm>
#include <numeric>

#include "memory/arena.h"
#include "plan/views.h"

namespace resfuse {

void Lifetime::touch(std::size_t step) {
    first = std::min(first, step);
    last = std::max(last, step);
}

namespace {

bool overwrites_residual(const std::vector<PlannedBuffer>& buffers, const Layer& layer) {
    const PlannedBuffer& from = buffers[static_cast<std::size_t>(layer.residual)];
    const PlannedBuffer& to = buffers[static_cast<std::size_t>(layer.output)];
    for (const int other : {layer.input, layer.gate, layer.product})
        if (other >= 0 && root_of(buffers, other) == layer.residual) return false;
    return from.whole_batch == to.whole_batch && from.type == to.type && from.image() == to.image() &&
           from.pixel == to.pixel;
}

}  // namespace

Workspace place_buffers(std::vector<PlannedBuffer>& buffers, const std::vector<Lifetime>& lifetimes,
                        const std::vector<Layer>& layers, std::size_t step_of_first_layer,
                        const std::vector<Segment>& segments, const std::vector<StepScratch>& scratch, index_t batch,
                        int threads) {
    const auto placed = [&](std::size_t b) {
        return !buffers[b].is_external() && !buffers[b].is_view() && lifetimes[b].is_used();
    };
    for (std::size_t b = 0; b < buffers.size(); ++b)
        if (placed(b))
            buffers[b].whole_batch =
                segment_of(segments, lifetimes[b].first) != segment_of(segments, lifetimes[b].last);

    // The buffer whose place another one takes.
    std::vector<std::size_t> place_of(buffers.size());
    std::iota(place_of.begin(), place_of.end(), std::size_t{0});
    for (std::size_t l = 0; l < layers.size(); ++l) {
        if (layers[l].residual < 0) continue;
        const std::size_t from = static_cast<std::size_t>(layers[l].residual);
        const std::size_t to = static_cast<std::size_t>(layers[l].output);
        if (placed(from) && placed(to) && lifetimes[from].last == step_of_first_layer + l &&
            overwrites_residual(buffers, layers[l]))
            place_of[to] = place_of[from];
    }

    std::vector<Interval> intervals;
    std::vector<std::size_t> interval_of(buffers.size(), Lifetime::kNever);
    for (std::size_t b = 0; b < buffers.size(); ++b) {
        if (!placed(b)) continue;
        const Lifetime& life = lifetimes[b];
        const Segment& from = segments[segment_of(segments, life.first)];
        const Segment& to = segments[segment_of(segments, life.last)];
        // Segments of several waves pass their steps several times.
        const std::size_t first = from.images < batch && buffers[b].whole_batch ? from.first_step : life.first;
        const std::size_t last = to.images < batch && buffers[b].whole_batch ? to.last_step : life.last;
        const index_t images = buffers[b].whole_batch ? batch : from.images;
        std::size_t& interval = interval_of[place_of[b]];
        if (interval == Lifetime::kNever) {
            interval = intervals.size();
            intervals.push_back({.first = first,
                                 .last = last,
                                 .bytes = static_cast<std::size_t>(images) * buffers[b].image_bytes(),
                                 .halves = true});
        } else {
            intervals[interval].first = std::min(intervals[interval].first, first);
            intervals[interval].last = std::max(intervals[interval].last, last);
        }
    }

    Workspace workspace;
    const std::size_t first_scratch = intervals.size();
    for (std::size_t s = 0; s < scratch.size(); ++s) {
        intervals.push_back({.first = s, .last = s, .bytes = scratch[s].shared});
        workspace.thread_scratch = std::max(workspace.thread_scratch, scratch[s].thread);
    }
    workspace.thread_scratch_offset = place_intervals(intervals);
    workspace.thread_scratch = arena_round_up(workspace.thread_scratch);
    for (std::size_t s = 0; s < scratch.size(); ++s)
        workspace.shared_scratch_offsets.push_back(intervals[first_scratch + s].offset);
    workspace.bytes = workspace.thread_scratch_offset + workspace.thread_scratch * static_cast<std::size_t>(threads);

    for (std::size_t b = 0; b < buffers.size(); ++b)
        if (placed(b)) buffers[b].offset = intervals[interval_of[place_of[b]]].offset;
    return workspace;
}

}  // namespace resfuse
