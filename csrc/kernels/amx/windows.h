// Windows whose rows are shorter than a step of AMX's tiles, joined to rows of whole steps.
#pragma once

#include <immintrin.h>

#include "kernels/layout/args.h"

namespace resfuse {
namespace {

constexpr __mmask64 first_bytes(index_t n) { return ~__mmask64{0} >> (64 - n); }

// Copies `Bytes` bytes of each run, the next run over what is too much; so many may be read and written behind the
// last.
template <index_t Bytes>
inline void join_window(const JoinWindowsArgs& g, const std::byte* from, std::byte* to) {
    for (index_t left = g.runs; left > 0; --left, from += g.row_bytes, to += g.run_bytes) {
        if constexpr (Bytes == 32) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
        } else {
            _mm512_storeu_si512(to, _mm512_loadu_si512(from));
        }
    }
}

// The same of exactly the runs: one line of the cache at most.
inline void join_short_window(const JoinWindowsArgs& g, const std::byte* from, std::byte* to) {
    const __mmask64 run = first_bytes(g.run_bytes);
    for (index_t left = g.runs; left > 0; --left, from += g.row_bytes, to += g.run_bytes)
        _mm512_mask_storeu_epi8(to, run, _mm512_maskz_loadu_epi8(run, from));
}

void join_windows(const JoinWindowsArgs& g) {
    auto* window = static_cast<const std::byte*>(g.band);
    auto* to = static_cast<std::byte*>(g.to);
    const index_t end = g.runs * g.run_bytes, room = g.padded_bytes - end + g.run_bytes;
    for (index_t left = g.windows; left > 0; --left, window += g.window_bytes, to += g.padded_bytes) {
        if (g.run_bytes <= 32 && room >= 32) {
            join_window<32>(g, window, to);
        } else if (room >= 64) {
            join_window<64>(g, window, to);
        } else {
            join_short_window(g, window, to);
        }
        for (index_t at = end; at < g.padded_bytes; at += 64)
            _mm512_mask_storeu_epi8(to + at, first_bytes(g.padded_bytes - at < 64 ? g.padded_bytes - at : 64),
                                    _mm512_setzero_si512());
    }
}

}  // namespace
}  // namespace resfuse
