#include "plan/segments.h"

#include <algorithm>

#include "machine/cpu.h"

namespace resfuse {

index_t images_per_wave(std::size_t weight_bytes, std::size_t activation_bytes, index_t batch, int threads) {
    const CacheSizes& caches = cache_sizes();
    constexpr index_t kFewestImages = 32;
    constexpr std::size_t kMostActivationBytes = std::size_t{64} << 20;
    const index_t affordable = static_cast<index_t>(kMostActivationBytes / std::max<std::size_t>(activation_bytes, 1));
    const index_t whole = std::min(batch, std::max(kFewestImages, affordable));
    const std::size_t budget = caches.l2 * static_cast<std::size_t>(threads);
    const index_t fit = static_cast<index_t>(budget / std::max<std::size_t>(activation_bytes, 1));
    const index_t wave = std::max<index_t>(fit / threads, 1) * threads;
    // Each wave streams the weights again, which must cost less than the activations that then stay in cache.
    const bool streams_more = weight_bytes / static_cast<std::size_t>(wave) > activation_bytes / 2;
    if (weight_bytes > caches.l2 && streams_more) return whole;
    return std::min(whole, wave);
}

}  // namespace resfuse
