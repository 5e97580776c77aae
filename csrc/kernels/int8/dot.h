// Sums of products of small integers: an unsigned 32-bit number wraps where a sum of many does, so that results are
// exact modulo 2^32 whatever overflows on the way.
#pragma once

#include "kernels/gemm/dot_tile.h"

namespace resfuse {
namespace {

using VecInt = VecMask;

struct SumsOf32Bits {
    using Lane = std::uint32_t;
    using Sum = VecBits;
    static constexpr int kTakenFromOperands = 0;
};

#if defined(RESFUSE_NEON)
// Words s16, whose products NEON adds to sums of 32 bits.
struct Words : SumsOf32Bits {
    using Operand = std::int16_t;
    using Weight = std::int16_t;
    static constexpr index_t kUnit = 1;
    static constexpr int kUnits = 8;  // lane_dot_tile.h
    using Operands = int16x8_t;
    template <int Vectors>
    struct Weights {
        explicit Weights(const Weight* b) : columns(vld1q_s16(b)) {}
        int16x8_t columns;
    };

    static Operands load(const Operand* p) { return vld1q_s16(p); }
    static Operands load_unit(const Operand* p) { return vdupq_n_s16(*p); }
    template <int Unit, int Vectors>
    [[gnu::always_inline]] static void add_products(Sum (&acc)[Vectors], Operands a, const Weights<Vectors>& weights) {
        acc[0] = (Sum)vmlal_laneq_s16((int32x4_t)acc[0], vget_low_s16(weights.columns), a, Unit);
        if constexpr (Vectors > 1) acc[1] = (Sum)vmlal_high_laneq_s16((int32x4_t)acc[1], weights.columns, a, Unit);
    }
};

#if defined(__ARM_FEATURE_MATMUL_INT8)
// Two rows u8 times two columns s8 of eight bytes each.
struct Bytes : SumsOf32Bits {
    using Operand = std::uint8_t;
    using Weight = std::int8_t;
    static constexpr index_t kUnit = 8;

    [[gnu::always_inline]] static Sum add_products(Sum sum, VecBits operands, VecBits weights) {
        return (Sum)vusmmlaq_s32((int32x4_t)sum, (uint8x16_t)operands, (int8x16_t)weights);
    }
};
using DirectDot = Bytes;
#elif defined(__ARM_FEATURE_DOTPROD)
// Four bytes s8 times s8: operands are taken 128 from, which the sums' offset makes good (Int8Kernels).
struct Bytes : SumsOf32Bits {
    using Operand = std::uint8_t;
    using Weight = std::int8_t;
    static constexpr index_t kUnit = 4;
    static constexpr int kTakenFromOperands = 128;
    static constexpr int kUnits = 4;
    using Operands = int8x16_t;
    template <int Vectors>
    struct Weights {
        explicit Weights(const Weight* b) {
            for (int j = 0; j < Vectors; ++j) columns[j] = vld1q_s8(b + 16 * j);
        }
        int8x16_t columns[Vectors];
    };

    static Operands load(const Operand* p) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(0x80))); }
    static Operands load_unit(const Operand* p) { return (Operands)(broadcast_unit(p) ^ 0x80808080u); }
    template <int Unit, int Vectors>
    [[gnu::always_inline]] static void add_products(Sum (&acc)[Vectors], Operands a, const Weights<Vectors>& weights) {
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) acc[j] = (Sum)vdotq_laneq_s32((int32x4_t)acc[j], weights.columns[j], a, Unit);
    }
};
using DirectDot = Bytes;
#else
using DirectDot = Words;
#endif

#else
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
#endif

}  // namespace
}  // namespace resfuse
