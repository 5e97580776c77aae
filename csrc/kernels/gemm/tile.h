// The register tile: some rows of A times a panel of columns, and what it fetches meanwhile.
#pragma once

#include "kernels/gemm/args.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

// 28 accumulators of 32 registers (AVX-512); 12 of 16 elsewhere.
constexpr int kTileRows = kVectorFloats == 16 ? 14 : 6;
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

// acc = rows of A times columns of B, over `segments` segments of `steps` steps that lie `offsets` from a.
template <bool More, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply(const float* a, index_t lda, const index_t* offsets, index_t segments,
                                            index_t steps, const float* b, const GemmAhead& ahead,
                                            Accumulators<Rows, Vectors>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Vectors; ++j) acc[i][j] = zero();
    const float* next_b = ahead.b;
    const index_t b_step = ahead.b_step;
    const index_t second_line = b_step > kLineFloats ? kLineFloats : 0;  // of the step, if this tile is alone
    for (const index_t* const end = offsets + segments; offsets < end; ++offsets) {
        RowWalk<Rows> rows(a + *offsets, lda);
        for (index_t left = steps; left > 0; left -= kTwoLines) {
            TwoLines next_a{ahead.a + *offsets + steps - left, lda};
            TwoLines more[2];
            if constexpr (More)
                for (int m = 0; m < 2; ++m)
                    more[m] = {ahead.more[m].at + ahead.more[m].advance * (steps - left), ahead.more[m].pitch};
#pragma GCC unroll 2
            for (index_t n = at_most(left, kTwoLines); n > 0; --n) {
                Vec weights[Vectors];
#pragma GCC unroll 2
                for (int j = 0; j < Vectors; ++j) weights[j] = load(b + j * kVectorFloats);
                // With one vector of columns loads are the bottleneck, and fetches are loads.
                if constexpr (Vectors > 1) {
                    next_a.fetch();
                    if constexpr (More) {
                        more[0].fetch();
                        more[1].fetch();
                    }
                    __builtin_prefetch(next_b);
                    __builtin_prefetch(next_b + kFarSteps * kTileCols, 0, 2);
                    __builtin_prefetch(next_b + kFarSteps * kTileCols + second_line, 0, 2);
                    next_b += b_step;
                }
#pragma GCC unroll 16
                for (int i = 0; i < Rows; ++i) {
                    const Vec value = broadcast(*rows.row(i));
#pragma GCC unroll 2
                    for (int j = 0; j < Vectors; ++j) acc[i][j] += value * weights[j];
                }
                rows.advance(1);
                b += kTileCols;
            }
        }
    }
}

}  // namespace
}  // namespace resfuse
