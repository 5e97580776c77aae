// Bytes in memory, numbers of 32 bits in registers; and how real numbers become bytes.
#pragma once

#include "kernels/activation/activation.h"
#include "kernels/int8/args.h"
#include "kernels/int8/dot.h"

namespace resfuse {
namespace {

using ByteLanes = VectorOf<std::uint8_t, kVectorFloats>::type;  // as many bytes as a vector has floats

inline VecInt widen_bytes(ByteLanes bytes) {
#if defined(__AVX512F__)
    return (VecInt)_mm512_maskz_cvtepu8_epi32(0xffff, (__m128i)bytes);
#elif defined(__AVX2__)
    return (VecInt)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(__builtin_bit_cast(long long, bytes)));
#elif defined(RESFUSE_NEON)
    const uint32x2_t four = vdup_n_u32(__builtin_bit_cast(std::uint32_t, bytes));
    return (VecInt)vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(four))));
#else
    return __builtin_convertvector(bytes, VecInt);
#endif
}

// Numbers from 0 to 255.
inline ByteLanes narrow_to_bytes(VecInt v) {
#if defined(__AVX512F__)
    return (ByteLanes)_mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v);
#elif defined(__AVX2__)
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    return __builtin_bit_cast(ByteLanes, _mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
#elif defined(RESFUSE_NEON)
    const uint16x4_t words = vmovn_u32((uint32x4_t)v);
    return __builtin_bit_cast(ByteLanes, vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0));
#else
    return __builtin_convertvector(v, ByteLanes);
#endif
}

inline VecInt load_bytes(const std::uint8_t* p) { return widen_bytes(load_raw<ByteLanes>(p)); }
inline VecInt load_bytes_first(const std::uint8_t* p, index_t n) {
    if (n >= kVectorFloats) return load_bytes(p);
    ByteLanes lanes{};
    std::memcpy(&lanes, p, static_cast<std::size_t>(n));
    return widen_bytes(lanes);
}
inline void store_bytes_first(std::uint8_t* p, VecInt v, index_t n) {
    const ByteLanes lanes = narrow_to_bytes(v);
    if (n >= kVectorFloats) return store_vector(p, lanes);
    std::memcpy(p, &lanes, static_cast<std::size_t>(n));
}

[[gnu::always_inline]] inline void store_two(std::uint8_t* p, VecInt a, VecInt b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    // The halves of a and b alternate until they are put in order.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a, (__m256i)b), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#elif defined(RESFUSE_NEON)
    vst1_u8(p, vmovn_u16(vcombine_u16(vmovn_u32((uint32x4_t)a), vmovn_u32((uint32x4_t)b))));
#else
    store_vector(p, narrow_to_bytes(a));
    store_vector(p + kVectorFloats, narrow_to_bytes(b));
#endif
}

#if defined(__AVX512F__)
// Numbers below 0 become 0, those above 255 become 255: two rows of two vectors each.
[[gnu::always_inline]] inline void store_two_rows(std::uint8_t* first, std::uint8_t* second, const VecInt (&v)[4]) {
    const __m512i words[2] = {_mm512_packs_epi32((__m512i)v[0], (__m512i)v[1]),
                              _mm512_packs_epi32((__m512i)v[2], (__m512i)v[3])};
    // Four bytes of each of the vectors alternate until they are put in order.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_maskz_permutexvar_epi32(0xffff, order, _mm512_packus_epi16(words[0], words[1]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(first), __builtin_shufflevector(bytes, bytes, 0, 1, 2, 3));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(second), _mm512_maskz_extracti64x4_epi64(0xff, bytes, 1));
}
#endif

inline Vec to_floats(VecInt v) { return __builtin_convertvector(v, Vec); }

// a * b + c, rounded once on every level, so that all give the same bits. Without an instruction for it: the product is
// exact as a double; the sum is rounded to odd there, which a second rounding, to a float, cannot spoil (Boldo and
// Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
[[gnu::always_inline]] inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(RESFUSE_NEON)
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__aarch64__)
    for (int i = 0; i < kVectorFloats; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    for (int i = 0; i < kVectorFloats; ++i) {
        const double product = static_cast<double>(a[i]) * static_cast<double>(b[i]), added = static_cast<double>(c[i]);
        double sum = product + added;
        const double part = sum - product;
        const double error = (product - (sum - part)) + (added - part);
        std::uint64_t bits = __builtin_bit_cast(std::uint64_t, sum);
        if (error != 0.0 && (bits & 1) == 0) bits += (error > 0.0) == (sum > 0.0) ? 1 : ~std::uint64_t{0};
        sum = __builtin_bit_cast(double, bits);
        c[i] = static_cast<float>(sum);
    }
    return c;
#endif
}

// Between bounds; NaN becomes the lower one.
[[gnu::always_inline]] inline Vec clamp(Vec v, Vec low, Vec high) {
    // The x86 maximum gives its second operand when either is NaN.
#if defined(__AVX512F__)
    return _mm512_maskz_min_ps(0xffff, _mm512_maskz_max_ps(0xffff, v, low), high);
#elif defined(__AVX__)
    return _mm256_min_ps(_mm256_max_ps(v, low), high);
#elif defined(RESFUSE_NEON)
    return (Vec)vminq_f32(vmaxnmq_f32((float32x4_t)v, (float32x4_t)low), (float32x4_t)high);
#else
    const Vec above = v > low ? v : low;
    return above < high ? above : high;
#endif
}

// Numbers between -255 and 255, rounded to nearest, ties to even.
[[gnu::always_inline]] inline VecInt round_to_int(Vec v) {
#if defined(__AVX512F__)
    return (VecInt)_mm512_maskz_cvtps_epi32(0xffff, v);
#elif defined(__AVX__)
    return (VecInt)_mm256_cvtps_epi32(v);
#elif defined(RESFUSE_NEON)
    return (VecInt)vcvtnq_s32_f32((float32x4_t)v);
#else
    // Those behind the point of 1.5 * 2^23 are whole, and they lie at the bottom of its bits.
    constexpr float kShift = 0x1.8p23f;
    return (VecInt)(v + kShift) - static_cast<int>(__builtin_bit_cast(std::uint32_t, kShift));
#endif
}

// As bytes of a range: torch.quantize_per_tensor's rule.
struct Quantizer {
    explicit Quantizer(const Quantization& range)
        : steps(broadcast(1.0f / range.scale)),
          low(broadcast(static_cast<float>(-range.zero_point))),
          high(broadcast(static_cast<float>(255 - range.zero_point))),
          zero_point(range.zero_point) {}
    VecInt operator()(Vec x) const { return round_to_int(clamp(x * steps, low, high)) + zero_point; }

    Vec steps, low, high;
    int zero_point;
};

// Writes outputs as OutputArgs says.
template <DType Type>
class Writer {
  public:
    explicit Writer(const OutputArgs& args)
        : args_(args),
          low_(broadcast(args.low)),
          high_(broadcast(args.high)),
          steps_(broadcast(args.steps)),
          zero_point_(VecInt{} + args.zero_point) {}

    [[gnu::always_inline]] void operator()(void* y, index_t i, Vec v, index_t n) const {
        if (args_.activation.kind != Activation::none) v = activated(args_.activation, v, 0);
        if constexpr (Type == DType::u8) {
            if (args_.steps != 1.0f) v = v * steps_;
            store_bytes_first(static_cast<std::uint8_t*>(y) + i, byte_of(v), n);
        } else {
            store_first(static_cast<float*>(y) + i, clamp_below(v, low_), n);
        }
    }

    // Two vectors that lie one behind the other.
    [[gnu::always_inline]] void operator()(void* y, index_t i, Vec a, Vec b) const {
        if constexpr (Type == DType::u8) {
            if (args_.activation.kind == Activation::none)
                return store_two(static_cast<std::uint8_t*>(y) + i, byte_of(a), byte_of(b));
        }
        (*this)(y, i, a, kVectorFloats);
        (*this)(y, i + kVectorFloats, b, kVectorFloats);
    }

#if defined(__AVX512F__)
    // Whether outputs are bytes whose lower bound is that of all bytes, as it is after ReLU if zero is its lowest.
    bool saturates() const {
        return Type == DType::u8 && args_.activation.kind == Activation::none && args_.steps == 1.0f &&
               args_.low == static_cast<float>(-args_.zero_point);
    }
    // Of such: what store_two_rows narrows. The x86 minimum gives its second operand when either is NaN, and what no
    // integer stands for becomes the least one.
    [[gnu::always_inline]] VecInt wide_byte(Vec v) const {
        return round_to_int(_mm512_maskz_min_ps(0xffff, high_, v)) + zero_point_;
    }
#endif

  private:
    [[gnu::always_inline]] VecInt byte_of(Vec v) const { return round_to_int(clamp(v, low_, high_)) + zero_point_; }

    const OutputArgs& args_;
    Vec low_, high_, steps_;
    VecInt zero_point_;
};

// Calls f with a Writer of the outputs' type.
template <class F>
inline void with_writer(const OutputArgs& output, F f) {
    if (output.type == DType::u8) return f(Writer<DType::u8>(output));
    f(Writer<DType::fp32>(output));
}

// What is read as real numbers in some units.
template <DType Type>
struct Reader {
    static Vec at(const void* data, index_t i, index_t n) {
        if constexpr (Type == DType::u8) {
            return to_floats(load_bytes_first(static_cast<const std::uint8_t*>(data) + i, n));
        } else {
            return load_first(static_cast<const float*>(data) + i, n);
        }
    }
};

// Nothing that could be added.
struct NoReader {};

// Calls f with a Reader of a type, or NoReader.
template <class F>
inline void with_reader(bool reads, DType type, F f) {
    if (!reads) return f(NoReader{});
    if (type == DType::u8) return f(Reader<DType::u8>{});
    f(Reader<DType::fp32>{});
}

}  // namespace
}  // namespace resfuse
