// The logistic function.
#pragma once

#include <array>
#include <bit>

#include "kernels/simd/element.h"

#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

namespace resfuse {
namespace {

#if defined(__AVX512DQ__)

// The bits of 2^(j / 32), less what j itself adds when it is shifted to where an exponent begins, behind five bits.
constexpr auto kRoots = [] {
    constexpr std::array<float, 32> roots{
        0x1.0p+0f,      0x1.059b0ep+0f, 0x1.0b5586p+0f, 0x1.11301ep+0f, 0x1.172b84p+0f, 0x1.1d4874p+0f, 0x1.2387a6p+0f,
        0x1.29e9ep+0f,  0x1.306fep+0f,  0x1.371a74p+0f, 0x1.3dea64p+0f, 0x1.44e086p+0f, 0x1.4bfdaep+0f, 0x1.5342b6p+0f,
        0x1.5ab07ep+0f, 0x1.6247ecp+0f, 0x1.6a09e6p+0f, 0x1.71f75ep+0f, 0x1.7a1148p+0f, 0x1.82589ap+0f, 0x1.8ace54p+0f,
        0x1.93737cp+0f, 0x1.9c4918p+0f, 0x1.a5503cp+0f, 0x1.ae89fap+0f, 0x1.b7f77p+0f,  0x1.c199bep+0f, 0x1.cb720ep+0f,
        0x1.d5818ep+0f, 0x1.dfc974p+0f, 0x1.ea4afap+0f, 0x1.f50766p+0f,
    };
    std::array<std::int32_t, 32> bits{};
    for (std::int32_t j = 0; j < 32; ++j) {
        const auto place = static_cast<std::size_t>(j);
        bits[place] = std::bit_cast<std::int32_t>(roots[place]) - (j << 18);
    }
    return bits;
}();

// 1 / (1 + e^-x), NaN of NaN perhaps not. e^-x is 2^(n / 32) 2^f: the first factor from a table and an exponent, the
// second one a polynomial of degree 2 (Tang, "Table-driven implementation of the exponential function in IEEE
// floating-point arithmetic", 1989); then one step of Newton's from an estimate of the quotient. A quarter fewer cycles
// than without a table and with a division.
inline Vec sigmoid(Vec x) {
    constexpr int kSmallerMagnitude = 2;
    const Vec y = (Vec)_mm512_range_ps((__m512)x, (__m512)broadcast(88.0f), kSmallerMagnitude);
    const Vec magic = broadcast(0x1.8p18f);  // whose lowest bits then hold n
    const Vec shifted = y * -1.44269504088896341f + magic;
    const Vec f = y * -1.44269504088896341f - (shifted - magic);
    const __m512i n = (__m512i)shifted;
    const __m512i root = _mm512_permutex2var_epi32(_mm512_loadu_si512(&kRoots[0]), n, _mm512_loadu_si512(&kRoots[16]));
    const Vec power = (Vec)((VecMask)root + ((VecMask)n << 18));
    const Vec d = power * f * (f * 0x1.ebfbep-3f + 0x1.62e43p-1f) + (power + 1.0f);
    const Vec estimate = (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)d);  // (GCC 12 warns of the form without a mask)
    return estimate * (1.0f - d * estimate) + estimate;
}

#else

// 1 / (1 + e^-x), NaN of NaN perhaps not. e^-x is 2^k 2^f, with a polynomial of degree 5 for 2^f (its coefficients
// make the largest error smallest: 8e-8) and k small enough to be added to its exponent.
inline Vec sigmoid(Vec x) {
    const Vec low = broadcast(-88.0f), y = clamp_below(-clamp_below(x, low), low);
    const Vec magic = broadcast(0x1.8p23f);  // whose lowest bits then hold k
    const Vec shifted = y * 1.44269504088896341f + magic;
    const Vec f = y * 1.44269504088896341f - (shifted - magic);
    Vec p = f * 0x1.5c08e4p-10f + 0x1.3d0c52p-7f;
    p = p * f + 0x1.c6b6e4p-5f;
    p = p * f + 0x1.ebf918p-3f;
    p = p * f + 0x1.62e428p-1f;
    p = p * f + 0x1.000002p+0f;
    const Vec e = (Vec)((VecMask)p + ((VecMask)shifted << 23));
    return 1.0f / (1.0f + e);
}

#endif

}  // namespace
}  // namespace resfuse
