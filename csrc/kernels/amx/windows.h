// Windows whose rows are shorter than a step of AMX's tiles, joined to rows of whole steps.
#pragma once

#include <immintrin.h>

#include "kernels/layout/args.h"
#include "kernels/simd/simd.h"

namespace resfuse {
namespace {

constexpr __mmask64 first_bytes(index_t n) { return ~__mmask64{0} >> (64 - n); }

// A run is one line of the cache at most. `Whole`: lines are copied, the next run over what is too much, which a masked
// store takes longer for; so much may be read and written behind the last run.
template <bool Whole>
inline void join_window(const JoinWindowsArgs& g, const std::byte* from, std::byte* to) {
    const __mmask64 run = first_bytes(g.run_bytes);
    for (index_t left = g.runs; left > 0; --left, from += g.row_bytes, to += g.run_bytes) {
        if constexpr (Whole) {
            _mm512_storeu_si512(to, _mm512_loadu_si512(from));
        } else {
            _mm512_mask_storeu_epi8(to, run, _mm512_maskz_loadu_epi8(run, from));
        }
    }
}

void join_windows(const JoinWindowsArgs& g) {
    constexpr index_t kLine = 64;
    auto* window = static_cast<const std::byte*>(g.band);
    auto* to = static_cast<std::byte*>(g.to);
    const index_t end = g.runs * g.run_bytes;
    const bool whole = g.padded_bytes - end + g.run_bytes >= kLine;
    for (index_t left = g.windows; left > 0; --left, window += g.window_bytes, to += g.padded_bytes) {
        whole ? join_window<true>(g, window, to) : join_window<false>(g, window, to);
        for (index_t at = end; at < g.padded_bytes; at += kLine)
            _mm512_mask_storeu_epi8(to + at, first_bytes(at_most(g.padded_bytes - at, kLine)), _mm512_setzero_si512());
    }
}

}  // namespace
}  // namespace resfuse
