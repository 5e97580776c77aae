// Numbers in memory as elements of any floating-point type, converted one by one, by its definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "plan/step.h"

namespace fuzz {

// Bits of precision, and the exponents of the smallest normal and of the largest number.
struct Format {
    int precision, least, most;
};
constexpr Format kBf16{8, -126, 127};
constexpr Format kFp16{11, -14, 15};

// To nearest, ties to even.
inline std::uint16_t to_bits(double x, const Format& format) {
    const int fraction = format.precision - 1;
    const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const std::uint32_t infinity = static_cast<std::uint32_t>(format.most + 1 - format.least + 1) << fraction;
    if (std::isnan(x)) return static_cast<std::uint16_t>(sign | infinity | 1u << (fraction - 1));
    if (std::isinf(x)) return static_cast<std::uint16_t>(sign | infinity);
    int exponent = 0;
    std::frexp(x, &exponent);
    exponent = std::max(exponent - 1, format.least);
    // Units in the last place. A carry into the next exponent is what the bits say anyhow.
    const auto units = static_cast<std::uint32_t>(std::nearbyint(std::fabs(std::ldexp(x, fraction - exponent))));
    const std::uint32_t bits = (static_cast<std::uint32_t>(exponent - format.least) << fraction) + units;
    return static_cast<std::uint16_t>(sign | (bits < infinity ? bits : infinity));
}

inline double from_bits(std::uint16_t bits, const Format& format) {
    const int fraction = format.precision - 1;
    const int biased = (bits & 0x7fff) >> fraction, units = bits & ((1 << fraction) - 1);
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    if (biased == format.most + 1 - format.least + 1) return units ? std::nan("") : sign * HUGE_VAL;
    const int normal = biased ? 1 << fraction : 0, exponent = format.least + (biased ? biased - 1 : 0);
    return sign * std::ldexp(normal + units, exponent - fraction);
}

// Memory of so many elements and no byte more: a read behind it is found.
class Elements {
  public:
    Elements(std::size_t count, resfuse::DType type) : type_(type), memory_(count * size(), std::byte{0xff}) {}

    std::byte* data() { return memory_.data(); }
    const std::vector<std::byte>& memory() const { return memory_; }

    void set(std::size_t i, double x) {
        if (type_ == resfuse::DType::fp32) {
            const float value = static_cast<float>(x);
            std::memcpy(&memory_[i * size()], &value, sizeof value);
        } else {
            const std::uint16_t bits = to_bits(x, format());
            std::memcpy(&memory_[i * size()], &bits, sizeof bits);
        }
    }
    double get(std::size_t i) const {
        if (type_ == resfuse::DType::fp32) {
            float value;
            std::memcpy(&value, &memory_[i * size()], sizeof value);
            return static_cast<double>(value);
        }
        std::uint16_t bits;
        std::memcpy(&bits, &memory_[i * size()], sizeof bits);
        return from_bits(bits, format());
    }

  private:
    std::size_t size() const { return type_ == resfuse::DType::fp32 ? sizeof(float) : sizeof(std::uint16_t); }
    const Format& format() const { return type_ == resfuse::DType::bf16 ? kBf16 : kFp16; }

    resfuse::DType type_;
    std::vector<std::byte> memory_;
};

}  // namespace fuzz
