// Numbers out of the bytes that a fuzzer hands over; zeros once they are used up.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace fuzz {

using resfuse::index_t;

class Bytes {
  public:
    Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    std::uint8_t byte() { return at_ < size_ ? data_[at_++] : std::uint8_t{0}; }
    bool flag() { return byte() & 1; }
    index_t between(index_t least, index_t most) { return least + byte() % (most - least + 1); }

    // Mostly between the two; now and then a number that nobody means.
    index_t wild(index_t least, index_t most) {
        constexpr std::array<index_t, 9> kStrange = {
            -1, 0, 1 << 16, 0x7fffffff, index_t{1} << 31, index_t{1} << 40, INT64_MAX, INT64_MIN, -(1 << 20)};
        const std::uint8_t b = byte();
        return b >= 250 ? kStrange[byte() % kStrange.size()] : least + b % (most - least + 1);
    }

  private:
    const std::uint8_t* data_;
    std::size_t size_, at_ = 0;
};

// Values in [-1, 1) that follow from a seed.
class Noise {
  public:
    explicit Noise(std::uint32_t seed) : state_(seed * 2654435761u + 1u) {}
    float next() {
        state_ = state_ * 1664525u + 1013904223u;
        return static_cast<float>(static_cast<std::int32_t>(state_)) * 0x1p-31f;
    }
    std::vector<float> take(index_t n, float scale = 1.0f) {
        std::vector<float> values(static_cast<std::size_t>(n));
        for (float& value : values) value = scale * next();
        return values;
    }

  private:
    std::uint32_t state_;
};

}  // namespace fuzz
