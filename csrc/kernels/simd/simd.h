// The one SIMD type: a GCC/Clang vector of floats as wide as the instruction set this file is compiled for.
//
// Everything in the kernel headers lives in an unnamed namespace: each ISA's translation unit gets its own copy with
// internal linkage, so the linker can never keep an AVX-512 body for a function that an older CPU calls.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(RESFUSE_NEON)
#include <arm_neon.h>
#endif

#include "kernels/types.h"

namespace resfuse {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorFloats = 16;
#elif defined(__AVX__)
constexpr int kVectorFloats = 8;
#else
constexpr int kVectorFloats = 4;
#endif

// Without fused multiply-adds every step of a sum rounds twice.
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

typedef float Vec __attribute__((vector_size(kVectorFloats * sizeof(float))));
typedef float VecUnaligned __attribute__((vector_size(kVectorFloats * sizeof(float)), aligned(4), may_alias));
typedef int VecMask __attribute__((vector_size(kVectorFloats * sizeof(float))));

inline Vec zero() { return Vec{}; }

// x - 0 is x for every float (0 + x would turn -0 into +0), so the compiler folds this into a plain broadcast.
inline Vec broadcast(float x) { return x - Vec{}; }

inline Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }

inline void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }

// Half as many doubles as a Vec has floats, and the floats that they become.
constexpr int kVectorDoubles = kVectorFloats / 2;
typedef double VecDouble __attribute__((vector_size(kVectorDoubles * sizeof(double))));
typedef float VecHalf __attribute__((vector_size(kVectorDoubles * sizeof(float))));

inline VecDouble load_doubles(const float* p) {
    VecHalf half;
    std::memcpy(&half, p, sizeof half);
    return __builtin_convertvector(half, VecDouble);
}

inline void store_rounded(float* p, VecDouble v) {
    const VecHalf rounded = __builtin_convertvector(v, VecHalf);
    std::memcpy(p, &rounded, sizeof rounded);
}

// The first n floats at p (0 <= n <= kVectorFloats), zeros after them; reads nothing past p + n.
inline Vec load_first(const float* p, index_t n) {
    if (n >= kVectorFloats) return load(p);
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
#else
    float lanes[kVectorFloats] = {};
    std::memcpy(lanes, p, static_cast<std::size_t>(n) * sizeof(float));
    return load(lanes);
#endif
}

// Writes the first n lanes of v to p (0 <= n <= kVectorFloats) and nothing past them.
inline void store_first(float* p, Vec v, index_t n) {
    if (n >= kVectorFloats) {
        store(p, v);
        return;
    }
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v);
#else
    float lanes[kVectorFloats];
    store(lanes, v);
    std::memcpy(p, lanes, static_cast<std::size_t>(n) * sizeof(float));
#endif
}

// The same value, of which the compiler cannot tell that it follows from others: it would keep a pointer for each row
// of a tile, more than there are registers.
template <class T>
[[gnu::always_inline]] inline T opaque(T value) {
    asm("" : "+r"(value));
    return value;
}

// The same value, in a register: the compiler would read what several instructions need from memory for each of them.
[[gnu::always_inline]] inline Vec in_register(Vec v) {
#if defined(RESFUSE_X86)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

// max(v, floor) with NaN kept, as torch's ReLU keeps it.
inline Vec clamp_below(Vec v, Vec floor) {
    // The x86 maximum gives its second operand when either is NaN.
#if defined(__AVX512F__)
    return _mm512_maskz_max_ps(static_cast<__mmask16>(-1), floor, v);
#elif defined(__AVX__)
    return _mm256_max_ps(floor, v);
#elif defined(RESFUSE_NEON)
    return (Vec)vmaxq_f32((float32x4_t)floor, (float32x4_t)v);  // NaN where either is
#else
    return floor > v ? floor : v;
#endif
}

inline bool any_nan(Vec v) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0;
#elif defined(__AVX__)
    return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0;
#elif defined(RESFUSE_NEON)
    return vminvq_u32(vceqq_f32((float32x4_t)v, (float32x4_t)v)) == 0;
#else
    const VecMask nan = v != v;
    int any = 0;
    for (int i = 0; i < kVectorFloats; ++i) any |= nan[i];
    return any != 0;
#endif
}

// Maximum with NaN kept once seen, as torch's max-pool keeps it.
inline Vec max_keep_nan(Vec accumulated, Vec v) {
    const Vec larger = clamp_below(accumulated, v);  // NaN where accumulated is
    const VecMask is_nan = v != v;
    return is_nan ? v : larger;
}

}  // namespace
}  // namespace resfuse
