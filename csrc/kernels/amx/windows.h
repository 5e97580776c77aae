// Windows whose rows are shorter than a step of AMX's tiles, joined to rows of whole steps.
#pragma once

#include <immintrin.h>

#include "kernels/layout/args.h"

namespace resfuse {
namespace {

// A run is one line of the cache at most.
void join_windows(const JoinWindowsArgs& g) {
    const auto mask = [](index_t bytes) { return ~__mmask64{0} >> (64 - bytes); };
    const __mmask64 run = mask(g.run_bytes);
    const index_t end = g.runs * g.run_bytes;
    auto* window = static_cast<const std::byte*>(g.band);
    auto* to = static_cast<std::byte*>(g.to);
    for (index_t left = g.windows; left > 0; --left, window += g.window_bytes, to += g.padded_bytes) {
        const std::byte* from = window;
        for (index_t at = 0; at < end; at += g.run_bytes, from += g.row_bytes)
            _mm512_mask_storeu_epi8(to + at, run, _mm512_maskz_loadu_epi8(run, from));
        for (index_t at = end; at < g.padded_bytes; at += 64)
            _mm512_mask_storeu_epi8(to + at, mask(g.padded_bytes - at < 64 ? g.padded_bytes - at : 64),
                                    _mm512_setzero_si512());
    }
}

}  // namespace
}  // namespace resfuse
