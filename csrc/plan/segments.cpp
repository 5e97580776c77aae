#include "plan/segments.h"

#include <algorithm>

#include "machine/cpu.h"

namespace resfuse {

index_t images_per_wave(std::size_t weight_bytes, std::size_t activation_bytes, index_t batch, int threads) {
    const CacheSizes& caches = cache_sizes();
    constexpr index_t kFewestImages = 32;
    const std::size_t most_bytes = std::max<std::size_t>(64, 4 * static_cast<std::size_t>(threads)) << 20;
    const index_t affordable = static_cast<index_t>(most_bytes / std::max<std::size_t>(activation_bytes, 1));
    // Waves of about the same size: few images in the last one would leave threads idle.
    const index_t most = std::max(kFewestImages, affordable), waves = (batch + most - 1) / most;
    const index_t whole = (batch + waves - 1) / waves;
    const std::size_t budget = caches.l2 * static_cast<std::size_t>(threads);
    const index_t fit = static_cast<index_t>(budget / std::max<std::size_t>(activation_bytes, 1));
    const index_t wave = std::max<index_t>(fit / threads, 1) * threads;
    // Each wave streams the weights again, which must cost less than the activations that then stay in cache.
    const bool streams_more = weight_bytes / static_cast<std::size_t>(wave) > activation_bytes / 2;
    if (weight_bytes > caches.l2 && streams_more) return whole;
    return std::min(whole, wave);
}

namespace {

bool same(Extent a, Extent b) { return a.h == b.h && a.w == b.w; }

// Whether a layer, or the first one behind those of one pixel, has this extent.
bool in_stage(const std::vector<LayerTraffic>& layers, std::size_t l, Extent extent) {
    while (l < layers.size() && same(layers[l].out, {1, 1}) && !same(layers[l].out, extent)) ++l;
    return l < layers.size() && same(layers[l].out, extent);
}

}  // namespace

std::vector<Segment> make_segments(const std::vector<LayerTraffic>& layers, std::size_t steps_before, index_t batch,
                                   int threads) {
    std::vector<Segment> segments;
    for (std::size_t first = 0; first < layers.size();) {
        std::size_t last = first, weights = 0, activations = 0;
        for (const Extent extent = layers[first].out; last < layers.size() && in_stage(layers, last, extent); ++last) {
            weights = std::max(weights, layers[last].weights);
            activations = std::max(activations, layers[last].activations);
        }
        const index_t images = images_per_wave(weights, activations, batch, threads);
        const std::size_t last_step = steps_before + last - 1;
        if (!segments.empty() && segments.back().images == images) {
            segments.back().last_step = last_step;
        } else {
            segments.push_back({segments.empty() ? 0 : steps_before + first, last_step, images});
        }
        first = last;
    }
    return segments;
}

std::size_t segment_of(const std::vector<Segment>& segments, std::size_t step) {
    std::size_t s = 0;
    while (segments[s].last_step < step) ++s;
    return s;
}

}  // namespace resfuse
