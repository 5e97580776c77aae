// The rows of products in pairs of terms (paired_tile.h): scaled and followed by their own sums.
#pragma once

#include <bit>

#include "kernels/gemm/gemm.h"
#include "kernels/paired/args.h"
#include "kernels/simd/lanes.h"

namespace resfuse {
namespace {

// Sign of the pair of terms i and i + 1 of a chunk, 0 where no pair begins; in the last vector of a chunk none does
// that has no third term behind it.
struct PairSigns {
    float within[kPairPattern];
    float last[kPairPattern];
};
constexpr PairSigns make_pair_signs() {
    PairSigns signs{};
    for (index_t i = 0; i < kPairPattern; i += kTriple) {
        const float sign = i / kTriple % 2 == 0 ? 1.0f : -1.0f;
        signs.within[i] = sign;
        signs.last[i] = (i + kTriple - 1) % kLineFloats < kTriple - 1 ? 0.0f : sign;
    }
    return signs;
}
constexpr PairSigns kPairSigns = make_pair_signs();

// Sums of the products of each row's own pairs, of N rows at once, vector by vector.
template <int N>
class OwnSums {
  public:
    [[gnu::always_inline]] inline OwnSums() {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) previous_[n] = sums_[n] = zero();
    }

    [[gnu::always_inline]] inline void add(const Vec (&v)[N]) {
        const Vec signs = load(kPairSigns.within + phase_);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            sums_[n] += previous_[n] * (signs * lanes_from<1>(previous_[n], v[n]));
            previous_[n] = v[n];
        }
        phase_ = next_phase();
    }

    // What a chunk's products start with, of rows `pitch` floats apart.
    [[gnu::always_inline]] inline void finish(float* to, index_t pitch) {
        const Vec signs = load(kPairSigns.last + phase_);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
            to[n * pitch] = -sum_of(sums_[n] + previous_[n] * (signs * lanes_from<1>(previous_[n], zero())));
    }

  private:
    index_t next_phase() const {
        const index_t next = phase_ + kVectorFloats;
        return next == kPairPattern ? 0 : next;
    }

    Vec previous_[N], sums_[N];
    index_t phase_ = kPairPattern - kVectorFloats;  // of the previous vector
};

// Powers of two: what a row is multiplied by, and what takes that back.
struct RowScale {
    float scale, back;
};

inline float power_of_two(int exponent) { return std::bit_cast<float>((exponent + 127) << 23); }
inline int exponent_of(float x) { return (std::bit_cast<int>(x) >> 23 & 0xff) - 127; }

// Of a row whose squares are too large or too small for a sum of them, of zeros and of what is not finite.
template <class E>
[[gnu::noinline]] inline RowScale unusual_scale(const typename E::Storage* row, const float* step_scale,
                                                index_t depth) {
    float most = 0.0f;
    for (index_t c = 0; c < depth; ++c) {
        const float x = __builtin_fabsf(E::widen(row[c]) * step_scale[c]);
        if (!(x <= most)) most = x;
    }
    if (most == 0.0f) return {1.0f, 0.0f};
    const int exponent = exponent_of(most);
    if (exponent > 127) return {1.0f, 1.0f};
    const int most_of_both = 126;
    const int e = exponent < -most_of_both ? -most_of_both : exponent > most_of_both ? most_of_both : exponent;
    return {power_of_two(-e), power_of_two(e)};
}

// Sums of the squares of rows, their steps scaled.
template <class E, int N>
[[gnu::always_inline]] inline void sum_squares(const typename E::Storage* const (&rows)[N], const float* step_scale,
                                               index_t depth, float (&sums)[N]) {
    Vec squares[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) squares[n] = zero();
    for (index_t c = 0; c < depth; c += kVectorFloats) {
        const Vec scale = load(step_scale + c);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const Vec x = E::load(rows[n] + c) * scale;
            squares[n] += x * x;
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[n] = sum_of(squares[n]);
}

// The row's root mean square comes near 1.
template <class E>
[[gnu::always_inline]] inline RowScale row_scale(float sum_of_squares, const typename E::Storage* row,
                                                 const float* step_scale, index_t depth) {
    const float mean = sum_of_squares / static_cast<float>(depth);
    constexpr float kLeast = 1e-30f, kMost = 1e30f;
    if (!(mean > kLeast && mean < kMost)) return unusual_scale<E>(row, step_scale, depth);
    const int exponent = (exponent_of(mean) + 1) >> 1;
    return {power_of_two(-exponent), power_of_two(exponent)};
}

// N pixels as rows of products in pairs: several at once, so that their chains of sums overlap.
template <class E, int N>
[[gnu::always_inline]] inline void write_rows(const PairedRowsArgs& g, index_t first) {
    const index_t part = paired_part(g.depth), pitch = paired_pitch(g.depth);
    const typename E::Storage* rows[N];
    float* const to = g.to + first * pitch;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) rows[n] = static_cast<const typename E::Storage*>(g.x) + (first + n) * g.pixel;
    float squares[N];
    sum_squares<E>(rows, g.step_scale, g.depth, squares);
    Vec scale[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
        const RowScale s = row_scale<E>(squares[n], rows[n], g.step_scale, g.depth);
        to[n * pitch + pitch - 1] = s.back;
        scale[n] = broadcast(s.scale);
    }
    for (index_t begin = 0, chunk = 0; begin < g.depth; begin += part, ++chunk) {
        OwnSums<N> own;
        for (index_t c = begin, end = at_most(g.depth, begin + part); c < end; c += kVectorFloats) {
            const Vec channel = load(g.step_scale + c);
            Vec x[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) {
                x[n] = scale[n] * channel * E::load(rows[n] + c);
                store(to + n * pitch + c, x[n]);
            }
            own.add(x);
        }
        own.finish(to + g.depth + chunk, pitch);
    }
}

template <class E>
inline void paired_rows(const PairedRowsArgs& g) {
    constexpr int kAtOnce = 4;
    index_t i = 0;
    for (; i + kAtOnce <= g.rows; i += kAtOnce) write_rows<E, kAtOnce>(g, i);
    for (; i < g.rows; ++i) write_rows<E, 1>(g, i);
}

}  // namespace
}  // namespace resfuse
