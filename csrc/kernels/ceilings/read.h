// A plain read: what a kernel that only reads could reach at best. For benchmarks.
#pragma once

#include "kernels/simd/element.h"

namespace resfuse {
namespace {

std::uint32_t read_all(const void* data, index_t bytes) {
    const auto* p = static_cast<const std::uint8_t*>(data);
    constexpr auto step = static_cast<index_t>(kVectorBytes);
    VecBits a{}, b{}, c{}, d{};
    index_t i = 0;
    for (; i + 4 * step <= bytes; i += 4 * step) {
        a ^= load_raw<VecBits>(p + i);
        b ^= load_raw<VecBits>(p + i + step);
        c ^= load_raw<VecBits>(p + i + 2 * step);
        d ^= load_raw<VecBits>(p + i + 3 * step);
    }
    std::uint32_t folded = 0;
    for (; i < bytes; ++i) folded ^= p[i];
    const VecBits all = (a ^ b) ^ (c ^ d);
    for (std::size_t lane = 0; lane < kVectorFloats; ++lane) folded ^= all[lane];
    return folded;
}

}  // namespace
}  // namespace resfuse
