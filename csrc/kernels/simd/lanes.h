// Lanes of vectors: shifted, summed up, exchanged with others'.
#pragma once

#include <utility>

#include "kernels/simd/simd.h"

namespace resfuse {
namespace {

// Lanes [First, First + kVectorFloats) of v and what follows.
template <int First, int... Lanes>
[[gnu::always_inline]] inline Vec lanes_from(Vec v, Vec next, std::integer_sequence<int, Lanes...>) {
    return __builtin_shufflevector(v, next, (First + Lanes)...);
}
template <int First>
[[gnu::always_inline]] inline Vec lanes_from(Vec v, Vec next) {
    return lanes_from<First>(v, next, std::make_integer_sequence<int, kVectorFloats>{});
}

template <int Lanes = kVectorFloats / 2>
[[gnu::always_inline]] inline float sum_of(Vec v) {
    if constexpr (Lanes == 0) {
        return v[0];
    } else {
        return sum_of<Lanes / 2>(v + lanes_from<Lanes>(v, v));
    }
}

// Lanes of two vectors take turns, from lane `First` of each on.
template <int First, int... Lanes>
[[gnu::always_inline]] inline Vec interleaved_from(Vec a, Vec b, std::integer_sequence<int, Lanes...>) {
    return __builtin_shufflevector(a, b, (First + Lanes / 2 + Lanes % 2 * kVectorFloats)...);
}
template <int First>
[[gnu::always_inline]] inline Vec interleaved_from(Vec a, Vec b) {
    return interleaved_from<First>(a, b, std::make_integer_sequence<int, kVectorFloats>{});
}

// Of two rows of a square of lanes, some apart, the blocks beside the diagonal change places.
template <int Apart, int... Lanes>
[[gnu::always_inline]] inline void exchange_blocks(Vec& upper, Vec& lower, std::integer_sequence<int, Lanes...>) {
    const Vec u = upper, l = lower;
    upper = __builtin_shufflevector(u, l, (Lanes & Apart ? kVectorFloats + Lanes - Apart : Lanes)...);
    lower = __builtin_shufflevector(u, l, (Lanes & Apart ? kVectorFloats + Lanes : Lanes + Apart)...);
}

// Rows become columns: of blocks half as large each time (Eklundh, "A Fast Computer Method for Matrix Transposing",
// 1972).
template <int Apart = kVectorFloats / 2>
[[gnu::always_inline]] inline void transpose(Vec (&rows)[kVectorFloats]) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectorFloats; ++i)
        if ((i & Apart) == 0)
            exchange_blocks<Apart>(rows[i], rows[i + Apart], std::make_integer_sequence<int, kVectorFloats>{});
    if constexpr (Apart > 1) transpose<Apart / 2>(rows);
}

}  // namespace
}  // namespace resfuse
