#include "engine/fingerprint.h"

#include <bit>

namespace resfuse {

std::uint64_t fingerprint(const std::vector<SampledArray>& arrays) {
    constexpr index_t kSamples = 4;
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (const SampledArray& array : arrays) {
        const index_t samples = array.floats < kSamples ? array.floats : kSamples;
        for (index_t i = 0; i < samples; ++i) {
            const index_t at = samples == 1 ? 0 : i * (array.floats - 1) / (samples - 1);
            hash = (hash ^ std::bit_cast<std::uint32_t>(array.data[at])) * 0x9e3779b97f4a7c15u;
            hash ^= hash >> 29;
        }
    }
    return hash;
}

}  // namespace resfuse
