// Sums of products of small integers: an unsigned 32-bit number wraps where a sum of many does, so that results are
// exact modulo 2^32 whatever overflows on the way.
#pragma once

#include "kernels/simd/element.h"

namespace resfuse {
namespace {

using VecInt = VecMask;

struct SumsOf32Bits {
    using Lane = std::uint32_t;
    using Sum = VecBits;
};

// Pairs of words s16. All levels have an instruction that multiplies these and adds neighbours.
struct Words : SumsOf32Bits {
    using Operand = std::int16_t;
    using Weight = std::int16_t;
    static constexpr index_t kUnit = 2;

    [[gnu::always_inline]] static VecBits add_products(VecBits sum, VecBits operands, VecBits weights) {
#if defined(__AVX512VNNI__)
        return (VecBits)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)operands, (__m512i)weights);
#elif defined(__AVXVNNI__)
        return (VecBits)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)operands, (__m256i)weights);
#elif defined(__AVX512BW__)
        return sum + (VecBits)_mm512_madd_epi16((__m512i)operands, (__m512i)weights);
#elif defined(__AVX2__)
        return sum + (VecBits)_mm256_madd_epi16((__m256i)operands, (__m256i)weights);
#elif defined(__SSE2__)
        return sum + (VecBits)_mm_madd_epi16((__m128i)operands, (__m128i)weights);
#else
        const VecInt a = (VecInt)operands, w = (VecInt)weights;
        return sum + (VecBits)((a >> 16) * (w >> 16)) + (VecBits)((a << 16 >> 16) * (w << 16 >> 16));
#endif
    }
};

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
// Four bytes, u8 times s8, in one instruction. Without it, the one that multiplies bytes cuts their sums to 16 bits;
// weights of seven bits would get around that, at the price of other results on other CPUs. Words are as fast as those
// were (AVX2 on Zen; on older Intel cores three quarters of that), so bytes are multiplied as words there.
struct Bytes : SumsOf32Bits {
    using Operand = std::uint8_t;
    using Weight = std::int8_t;
    static constexpr index_t kUnit = 4;

    [[gnu::always_inline]] static VecBits add_products(VecBits sum, VecBits operands, VecBits weights) {
#if defined(__AVX512VNNI__)
        return (VecBits)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)operands, (__m512i)weights);
#else
        return (VecBits)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)operands, (__m256i)weights);
#endif
    }
};
using DirectDot = Bytes;
#else
using DirectDot = Words;
#endif

}  // namespace
}  // namespace resfuse
