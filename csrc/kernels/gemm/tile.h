// The register tile: some rows of A times a panel of columns, and what it fetches meanwhile.
#pragma once

#include "kernels/gemm/args.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

// 28 accumulators of 32 registers (AVX-512), 16 of 32 beside 8 vectors of operands (NEON); 12 of 16 elsewhere.
#if defined(RESFUSE_NEON)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = kVectorFloats == 16 ? 14 : 6;
#endif
constexpr int kTileVectors = 2;
constexpr int kTileCols = kTileVectors * kVectorFloats;
constexpr index_t kAheadSteps = 64;  // from a chunk's begin to the weights that are fetched meanwhile
constexpr index_t kFarSteps = 384;   // from there to those that are fetched into L2: the weights of late layers stream

template <int Rows, int Vectors>
using Accumulators = Vec[Rows][Vectors];

// Rows to fetch, some floats apart: the same two lines of each, or, with `advance`, further ones with every step.
struct RowsAhead {
    const float* at = nullptr;
    index_t pitch = 0;
    index_t advance = 0;
};

// Rows of a feature map.
template <class T>
[[gnu::always_inline]] inline RowsAhead rows_ahead(const T* at, index_t pitch, index_t advance = 0) {
    constexpr index_t bytes = sizeof(T);
    return {reinterpret_cast<const float*>(at), pitch * bytes / 4, advance};
}

// What is read or written next, fetched meanwhile, a line a step.
struct GemmAhead {
    const float* a;  // rows, lda floats apart
    const float* b;
    index_t b_step;
    RowsAhead more[2] = {};
};

// Walks two lines of each of some rows: what they need for the next kTwoLines floats.
constexpr index_t kTwoLines = 2 * kLineFloats;
struct TwoLines {
    const float* at;
    index_t pitch;
    index_t step = kLineFloats;
    [[gnu::always_inline]] inline void fetch() {
        __builtin_prefetch(at);
        at += step;
        step = pitch - step;
    }
};

// Walks the rows of A of a tile. One base pointer serves four rows, all that x86 can address with lda and 3 * lda; the
// compiler would keep one for each row, more than there are registers.
template <int Rows, class T = float>
class RowWalk {
  public:
    [[gnu::always_inline]] inline RowWalk(const T* a, index_t lda) : lda_(lda), lda3_(opaque(3 * lda)) {
#pragma GCC unroll 4
        for (int r = 0; r < kBases; ++r) base_[r] = opaque(a + kRowsEach * r * lda);
    }
    [[gnu::always_inline]] inline const T* row(int i) const {
        return base_[i / kRowsEach] + (i % kRowsEach == 3 ? lda3_ : i % kRowsEach * lda_);
    }
    [[gnu::always_inline]] inline void advance(index_t steps) {
#pragma GCC unroll 4
        for (int r = 0; r < kBases; ++r) base_[r] = opaque(base_[r] + steps);
    }

  private:
    static constexpr int kRowsEach = 4, kBases = (Rows + kRowsEach - 1) / kRowsEach;
    const T* base_[kBases];
    index_t lda_, lda3_;
};

// Even parts of what is longer than a chunk, whole units each.
constexpr index_t even_part(index_t length, index_t chunk, index_t unit) {
    const index_t parts = (length + chunk - 1) / chunk;
    return ((length + parts - 1) / parts + unit - 1) / unit * unit;
}

}  // namespace
}  // namespace resfuse
