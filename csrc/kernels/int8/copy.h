// Copies of images as operands of products: bytes, or words where there are no products of bytes.
#pragma once

#include "kernels/int8/bytes.h"
#include "kernels/layout/layout.h"

namespace resfuse {
namespace {

inline void store_operands(std::uint8_t* p, VecInt v, index_t n) { store_bytes_first(p, v, n); }
inline void store_operands(std::int16_t* p, VecInt v, index_t n) {
    const HalfBits words = narrow_bits((VecBits)v);
    if (n >= kVectorFloats) return store_vector(p, words);
    std::memcpy(p, &words, static_cast<std::size_t>(n) * sizeof(std::int16_t));
}

// Operands of what does not exist: zero's byte.
template <class T>
inline void fill_operands(T* p, int byte, index_t n) {
    if constexpr (sizeof(T) == 1) {
        std::memset(p, byte, static_cast<std::size_t>(n));
    } else {
        for (index_t i = 0; i < n; i += kVectorFloats)
            store_operands(p + i, VecInt{} + byte, at_most(n - i, kVectorFloats));
    }
}

// Real numbers by a range.
template <class T>
struct QuantizeMove {
    using From = float;
    using To = T;
    explicit QuantizeMove(const Quantization& range) : quantize(range) {}

    void fill(T* to, index_t n) const { fill_operands(to, quantize.zero_point, n); }
    void move(T* to, const float* from, index_t n) const {
        for (index_t i = 0; i < n; i += kVectorFloats) {
            const index_t lanes = at_most(n - i, kVectorFloats);
            store_operands(to + i, quantize(load_first(from + i, lanes)), lanes);
        }
    }
    T one(float x) const { return static_cast<T>(quantize(broadcast(x))[0]); }

    Quantizer quantize;
};

// Bytes as they are.
template <class T>
struct ByteMove {
    using From = std::uint8_t;
    using To = T;
    explicit ByteMove(const Quantization& range) : zero_point(range.zero_point) {}

    void fill(T* to, index_t n) const { fill_operands(to, zero_point, n); }
    void move(T* to, const std::uint8_t* from, index_t n) const {
        if constexpr (sizeof(T) == 1) {
            std::memcpy(to, from, static_cast<std::size_t>(n));
        } else {
            for (index_t i = 0; i < n; i += kVectorFloats) {
                const index_t lanes = at_most(n - i, kVectorFloats);
                store_operands(to + i, load_bytes_first(from + i, lanes), lanes);
            }
        }
    }
    T one(std::uint8_t x) const { return static_cast<T>(x); }

    int zero_point;
};

template <class Move>
void copy_int8_band(const Int8BandArgs& g) {
    copy_band_by(g.band, Move(g.range));
}

}  // namespace
}  // namespace resfuse
