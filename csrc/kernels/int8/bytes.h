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

inline Vec to_floats(VecInt v) { return __builtin_convertvector(v, Vec); }

// The same value, of which the compiler cannot tell that it is a product: a multiply-add would not round it, and not
// all levels have one. Results are the same bits on every level.
[[gnu::always_inline]] inline Vec rounded(Vec v) {
#if defined(RESFUSE_X86)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

// Between bounds; NaN becomes the lower one.
[[gnu::always_inline]] inline Vec clamp(Vec v, Vec low, Vec high) {
    const Vec above = v > low ? v : low;
    return above < high ? above : high;
}

// Numbers between -255 and 255, rounded to nearest, ties to even, plus a number: those behind the point of 1.5 * 2^23
// are whole, and they lie at the bottom of its bits.
[[gnu::always_inline]] inline VecInt round_and_add(Vec v, int number) {
    constexpr float kShift = 0x1.8p23f;
    return (VecInt)(v + kShift) - (static_cast<int>(__builtin_bit_cast(std::uint32_t, kShift)) - number);
}

// As bytes of a range: torch.quantize_per_tensor's rule.
struct Quantizer {
    explicit Quantizer(const Quantization& range)
        : steps(broadcast(1.0f / range.scale)),
          low(broadcast(static_cast<float>(-range.zero_point))),
          high(broadcast(static_cast<float>(255 - range.zero_point))),
          zero_point(range.zero_point) {}
    VecInt operator()(Vec x) const { return round_and_add(clamp(x * steps, low, high), zero_point); }

    Vec steps, low, high;
    int zero_point;
};

// Writes outputs as OutputArgs says.
template <DType Type>
class Writer {
  public:
    explicit Writer(const OutputArgs& args)
        : args_(args), low_(broadcast(args.low)), high_(broadcast(args.high)), steps_(broadcast(args.steps)) {}

    [[gnu::always_inline]] void operator()(void* y, index_t i, Vec v, index_t n) const {
        if (args_.activation.kind != Activation::none) v = activated(args_.activation, v);
        if constexpr (Type == DType::u8) {
            if (args_.steps != 1.0f) v = v * steps_;
            store_bytes_first(static_cast<std::uint8_t*>(y) + i, round_and_add(clamp(v, low_, high_), args_.zero_point),
                              n);
        } else {
            store_first(static_cast<float*>(y) + i, clamp_below(v, low_), n);
        }
    }

  private:
    const OutputArgs& args_;
    Vec low_, high_, steps_;
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
