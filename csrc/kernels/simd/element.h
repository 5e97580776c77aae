// Element types: how vectors of their accumulator type are loaded, and how one accumulated number is rounded back.
//
// fp32, bf16 and fp16 accumulate in fp32, fp64 in fp64.
// A *step* is `kStep` consecutive elements that come in as one vector of partial sums: where all lanes end up in one
// number, it does not matter which an element lands in, so a step of bf16 is twice as long as the vector.
// A *pair* is 2 * kLanes consecutive elements that come in as two vectors. Pairs can be added up lane by lane;
// `order_pair` then brings the sums into the elements' order.
#pragma once

#include <cstdint>
#include <utility>

#include "kernels/simd/simd.h"

namespace resfuse {
namespace {

constexpr std::size_t kVectorBytes = kVectorFloats * sizeof(float);

template <class T, std::size_t Bytes = kVectorBytes>
struct VectorOf {
    typedef T type __attribute__((vector_size(Bytes)));
};
using VecBits = VectorOf<std::uint32_t>::type;
using HalfBits = VectorOf<std::uint16_t, kVectorBytes / 2>::type;

// Not std::min: a template of the standard library, emitted out of line, would be shared by all instruction sets.
inline index_t at_most(index_t a, index_t b) { return b < a ? b : a; }

template <class T>
inline void copy_elements(T* to, const T* from, index_t n) {
    std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
}

template <class V>
inline void store_vector(void* p, V v) {
    std::memcpy(p, &v, sizeof(V));
}

template <class V, class T>
inline V load_raw(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
// The elements whose bits are set in the mask, zeros for the others, whose memory is not touched.
template <class V, class T>
inline V load_raw_masked(const T* p, std::uint64_t mask) {
    if constexpr (sizeof(V) == 64 && sizeof(T) == 8) {
        return (V)_mm512_maskz_loadu_epi64(static_cast<__mmask8>(mask), p);
    } else if constexpr (sizeof(V) == 64 && sizeof(T) == 4) {
        return (V)_mm512_maskz_loadu_epi32(static_cast<__mmask16>(mask), p);
    } else if constexpr (sizeof(V) == 64) {
        return (V)_mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), p);
    } else {
        return (V)_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p);
    }
}
#endif

// The first n elements at p, zeros after them; reads nothing past p + n.
template <class V, class T>
inline V load_raw_first(const T* p, index_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return load_raw_masked<V>(p, (std::uint64_t{1} << n) - 1u);
#else
    V v{};
    std::memcpy(&v, p, static_cast<std::size_t>(n) * sizeof(T));
    return v;
#endif
}

// Loads the last n elements of a run, given its end, with zeros in the lanes before them. The mask is made once for
// many runs. Where `kReadsBefore`, elements before those n are read too and must exist.
template <class V, class T>
class TailLoader {
  public:
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    static constexpr bool kReadsBefore = false;
    explicit TailLoader(index_t n) : n_(n), mask_((std::uint64_t{1} << n) - 1u) {}
    V operator()(const T* end) const { return load_raw_masked<V>(end - n_, mask_); }

  private:
    index_t n_;
    std::uint64_t mask_;
#else
    static constexpr bool kReadsBefore = true;
    explicit TailLoader(index_t n) {
        std::uint8_t keep[sizeof(V)] = {};
        std::memset(keep + sizeof(V) - static_cast<std::size_t>(n) * sizeof(T), 0xff,
                    static_cast<std::size_t>(n) * sizeof(T));
        mask_ = load_raw<Bits>(keep);
    }
    V operator()(const T* end) const {
        return (V)((Bits)load_raw<V>(end - static_cast<index_t>(sizeof(V) / sizeof(T))) & mask_);
    }

  private:
    using Bits = typename VectorOf<std::uint32_t, sizeof(V)>::type;
    Bits mask_;
#endif
};

// GCC 12 takes __builtin_convertvector apart into halves and shuffles; these are one instruction each. (The unmasked
// AVX-512 forms make it warn of its own undefined vector.)
inline VecBits widen_bits(HalfBits h) {
#if defined(__AVX512F__)
    return (VecBits)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)h);
#elif defined(__AVX2__)
    return (VecBits)_mm256_cvtepu16_epi32((__m128i)h);
#elif defined(RESFUSE_NEON)
    return (VecBits)vmovl_u16((uint16x4_t)h);
#else
    return __builtin_convertvector(h, VecBits);
#endif
}

// Values below 2^16.
inline HalfBits narrow_bits(VecBits v) {
#if defined(__AVX512F__)
    return (HalfBits)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v);
#elif defined(__AVX2__)
    return (HalfBits)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
#elif defined(RESFUSE_NEON)
    return (HalfBits)vmovn_u32((uint32x4_t)v);
#else
    return __builtin_convertvector(v, HalfBits);
#endif
}

// One behind the other.
template <std::size_t... I>
[[gnu::always_inline]] inline VecBits joined(HalfBits a, HalfBits b, std::index_sequence<I...>) {
    return (VecBits)__builtin_shufflevector(a, b, I...);
}
[[gnu::always_inline]] inline VecBits joined(HalfBits a, HalfBits b) {
    return joined(a, b, std::make_index_sequence<2 * kVectorFloats>{});
}

// Of two vectors.
inline VecBits narrow_bits(VecBits a, VecBits b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    // The halves of a and b alternate until they are put in order.
    return (VecBits)_mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)a, (__m256i)b), 0xd8);
#else
    return joined(narrow_bits(a), narrow_bits(b));
#endif
}

template <class V>
struct Pair {
    V a, b;
    Pair& operator+=(const Pair& other) {
        a += other.a;
        b += other.b;
        return *this;
    }
    friend Pair operator+(Pair x, const Pair& y) { return x += y; }
};

template <class T>
struct NativeElement {
    using Storage = T;
    using Accumulator = T;
    using Vector = typename VectorOf<T>::type;
    static constexpr index_t kLanes = kVectorBytes / sizeof(T);
    static constexpr index_t kStep = kLanes;

    static Pair<Vector> pair(const T* p) { return {load_raw<Vector>(p), load_raw<Vector>(p + kLanes)}; }
    static Pair<Vector> pair_first(const T* p, index_t n) {
        if (n <= kLanes) return {load_raw_first<Vector>(p, n), Vector{}};
        return {load_raw<Vector>(p), load_raw_first<Vector>(p + kLanes, n - kLanes)};
    }
    static void order_pair(T*) {}
    static Vector lanes(const T* p) { return load_raw<Vector>(p); }
    static Vector lanes_first(const T* p, index_t n) { return load_raw_first<Vector>(p, n); }
    static Vector step(const T* p) { return load_raw<Vector>(p); }
    static Vector step_first(const T* p, index_t n) { return load_raw_first<Vector>(p, n); }
    using Tail = TailLoader<Vector, T>;
    static Vector step_tail(const T* end, const Tail& tail) { return tail(end); }
    static T widen(T x) { return x; }
    static Vector round(Vector x) { return x; }
};

// Of feature maps: vectors of fp32 in registers, whatever lies in memory.
struct Fp32 : NativeElement<float> {
    static Vec load(const float* p) { return resfuse::load(p); }
    static Vec load_first(const float* p, index_t n) { return resfuse::load_first(p, n); }
    static void store(float* p, Vec v) { resfuse::store(p, v); }
    static void store_two(float* p, Vec a, Vec b) {
        resfuse::store(p, a);
        resfuse::store(p + kVectorFloats, b);
    }
    static void store_first(float* p, Vec v, index_t n) { resfuse::store_first(p, v, n); }
};
struct Fp64 : NativeElement<double> {};

// How vectors of fp32 are read from and written to feature maps of 16-bit elements, each value rounded once.
template <class E>
struct HalfFeatures {
    static Vec load(const std::uint16_t* p) { return E::lanes(p); }
    static Vec load_first(const std::uint16_t* p, index_t n) {
        return n >= kVectorFloats ? E::lanes(p) : E::lanes_first(p, n);
    }
    static void store(std::uint16_t* p, Vec v) { store_vector(p, E::round(v)); }
    static void store_two(std::uint16_t* p, Vec a, Vec b) { store_vector(p, E::round_two(a, b)); }
    static void store_first(std::uint16_t* p, Vec v, index_t n) {
        const HalfBits half = E::round(v);
        if (n >= kVectorFloats) return store_vector(p, half);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
        _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1u), (__m256i)half);
#else
        std::memcpy(p, &half, static_cast<std::size_t>(n) * sizeof(std::uint16_t));
#endif
    }
};

// The upper half of an fp32.
struct Bf16 : HalfFeatures<Bf16> {
    using Storage = std::uint16_t;
    using Accumulator = float;
    using Vector = Vec;
    static constexpr index_t kLanes = kVectorFloats;
    static constexpr index_t kStep = 2 * kLanes;

    // Elements with even numbers, elements with odd ones: a shift and a mask, where widening in order takes shuffles.
    static Pair<Vec> split(VecBits pairs) { return {(Vec)(pairs << 16), (Vec)(pairs & 0xffff0000u)}; }
    static Vec add_halves(VecBits pairs) { return split(pairs).a + split(pairs).b; }

    static Pair<Vec> pair(const Storage* p) { return split(load_raw<VecBits>(p)); }
    static Pair<Vec> pair_first(const Storage* p, index_t n) { return split(load_raw_first<VecBits>(p, n)); }
    static void order_pair(float* sums) {
        const Vec even = load_raw<Vec>(sums), odd = load_raw<Vec>(sums + kLanes);
        constexpr auto lanes = std::make_index_sequence<kVectorFloats>{};
        store_vector(sums, zip<0>(even, odd, lanes));
        store_vector(sums + kLanes, zip<kVectorFloats / 2>(even, odd, lanes));
    }
    static Vec lanes(const Storage* p) { return (Vec)(widen_bits(load_raw<HalfBits>(p)) << 16); }
    static Vec lanes_first(const Storage* p, index_t n) {
        return (Vec)(widen_bits(load_raw_first<HalfBits>(p, n)) << 16);
    }
    template <std::size_t First, std::size_t... I>
    static Vec zip(Vec even, Vec odd, std::index_sequence<I...>) {
        return __builtin_shufflevector(even, odd, (First + I / 2 + I % 2 * kVectorFloats)...);
    }
    static Vec step(const Storage* p) { return add_halves(load_raw<VecBits>(p)); }
    static Vec step_first(const Storage* p, index_t n) { return add_halves(load_raw_first<VecBits>(p, n)); }
    using Tail = TailLoader<VecBits, Storage>;
    static Vec step_tail(const Storage* end, const Tail& tail) { return add_halves(tail(end)); }
    static float widen(Storage x) { return __builtin_bit_cast(float, static_cast<std::uint32_t>(x) << 16); }

    // To nearest, ties to even; a NaN stays a NaN whatever its payload.
    static HalfBits round(Vec x) { return narrow_bits(rounded(x)); }
    static VecBits round_two(Vec a, Vec b) {
#if defined(__AVX512BF16__)
        return (VecBits)_mm512_cvtne2ps_pbh(b, a);  // of fp32 denormals zeros, as they are where programs run
#else
        return narrow_bits(rounded(a), rounded(b));
#endif
    }

  private:
    static VecBits rounded(Vec x) {
        const VecBits bits = (VecBits)x, high = bits >> 16;
        return x != x ? high | 0x40u : (bits + 0x7fffu + (high & 1u)) >> 16;
    }
};

// IEEE binary16.
struct Fp16 : HalfFeatures<Fp16> {
    using Storage = std::uint16_t;
    using Accumulator = float;
    using Vector = Vec;
    static constexpr index_t kLanes = kVectorFloats;
    static constexpr index_t kStep = kLanes;

    static Vec widen_lanes(HalfBits h) {
#if defined(__AVX512F__)
        return (Vec)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
#elif defined(__F16C__)
        return (Vec)_mm256_cvtph_ps((__m128i)h);
#elif defined(RESFUSE_NEON)
        return (Vec)vcvt_f32_f16((float16x4_t)h);
#else
        // A denormal half's bits behind those of 2^-14 are that much more than it. (No fp32 denormal on the way: where
        // programs run, those are zeros.)
        const VecBits wide = widen_bits(h);
        const VecBits magnitude = (wide & 0x7fffu) << 13;
        const VecBits denormal = (VecBits)((Vec)(magnitude | 0x38800000u) - 0x1p-14f);
        const VecBits normal = magnitude + 0x38000000u;
        const VecBits finite = magnitude < 0x00800000u ? denormal : normal;
        const VecBits special = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite;
        return (Vec)(special | (wide & 0x8000u) << 16);
#endif
    }

    static Pair<Vec> pair(const Storage* p) { return {step(p), step(p + kLanes)}; }
    static Pair<Vec> pair_first(const Storage* p, index_t n) {
        if (n <= kLanes) return {step_first(p, n), Vec{}};
        return {step(p), step_first(p + kLanes, n - kLanes)};
    }
    static void order_pair(float*) {}
    static Vec lanes(const Storage* p) { return step(p); }
    static Vec lanes_first(const Storage* p, index_t n) { return step_first(p, n); }
    static Vec step(const Storage* p) { return widen_lanes(load_raw<HalfBits>(p)); }
    static Vec step_first(const Storage* p, index_t n) { return widen_lanes(load_raw_first<HalfBits>(p, n)); }
    using Tail = TailLoader<HalfBits, Storage>;
    static Vec step_tail(const Storage* end, const Tail& tail) { return widen_lanes(tail(end)); }
    static float widen(Storage x) { return step_first(&x, 1)[0]; }

    // To nearest, ties to even; past the largest half to infinity.
    static HalfBits round(Vec x) {
#if defined(__AVX512F__)
        return (HalfBits)_mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
        return (HalfBits)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(RESFUSE_NEON)
        return (HalfBits)vcvt_f16_f32((float32x4_t)x);
#else
        const VecBits bits = (VecBits)x;
        const VecBits magnitude = bits & 0x7fffffffu;
        const VecBits normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
        // A denormal half: adding 0.5 leaves its bits, rounded, at the bottom of the significand.
        const VecBits denormal = (VecBits)((Vec)magnitude + 0.5f) - 0x3f000000u;
        VecBits half = magnitude < 0x38800000u ? denormal : normal;
        half = magnitude >= 0x477ff000u ? VecBits{} + 0x7c00u : half;
        half = magnitude > 0x7f800000u ? VecBits{} + 0x7e00u : half;
        return narrow_bits(half | (bits >> 16 & 0x8000u));
#endif
    }
    static VecBits round_two(Vec a, Vec b) { return joined(round(a), round(b)); }
};

}  // namespace
}  // namespace resfuse
