// Nothing but multiply-adds on registers: the ceiling of every kernel here. For benchmarks.
#pragma once

#include "kernels/simd/simd.h"

namespace resfuse {
namespace {

// Floating-point multiply-adds in `steps` steps of as many independent chains as hide their latency.
index_t multiply_adds_at_peak(index_t steps) {
    constexpr int kChains = 12;
    Vec sums[kChains];
    const volatile float start = 3.0f;  // unknown to the compiler: of a chain at its fixed point it leaves nothing
    const Vec factor = broadcast(0.5f), term = broadcast(1.0f);
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = broadcast(start + static_cast<float>(i));
    for (index_t step = 0; step < steps; ++step)
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
    Vec all = sums[0];
#pragma GCC unroll 12
    for (int i = 1; i < kChains; ++i) all += sums[i];
    volatile float sink = all[0];
    (void)sink;
    return steps * kChains * kVectorFloats;
}

}  // namespace
}  // namespace resfuse
