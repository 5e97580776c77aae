#include "program/stored_tensor.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace resfuse {

namespace {

constexpr std::array<index_t, kStoredTypes> kBytes = {4, 8, 2, 2, 1, 4, 8};
constexpr std::array<const char*, kStoredTypes> kNames = {"float32", "float64", "bfloat16", "float16",
                                                          "int8",    "int32",   "int64"};

template <class T>
T at(const void* data, index_t offset) {
    return static_cast<const T*>(data)[offset];
}

}  // namespace

index_t stored_bytes(StoredType type) { return kBytes[static_cast<std::size_t>(type)]; }
const char* stored_name(StoredType type) { return kNames[static_cast<std::size_t>(type)]; }

index_t StoredTensor::size() const {
    index_t size = 1;
    for (const index_t length : shape) size *= length;
    return size;
}

std::vector<index_t> contiguous_strides(std::span<const index_t> shape) {
    std::vector<index_t> strides(shape.size());
    index_t stride = 1;
    for (std::size_t d = shape.size(); d-- > 0;) {
        strides[d] = stride;
        stride *= shape[d];
    }
    return strides;
}

std::string shape_text(std::span<const index_t> shape) {
    std::string text = "[";
    for (const index_t length : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(length);
    return text + "]";
}

#if defined(__aarch64__) && !defined(__clang__)
using Half = __fp16;  // GCC 12 knows no other there
#else
using Half = _Float16;
#endif

float from_bf16(unsigned short bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
float from_fp16(unsigned short bits) { return static_cast<float>(std::bit_cast<Half>(bits)); }

unsigned short to_bf16(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (std::isnan(value)) return static_cast<unsigned short>((bits >> 16) | 0x40);
    return static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

unsigned short to_fp16(float value) { return std::bit_cast<unsigned short>(static_cast<Half>(value)); }

double stored_value(const StoredTensor& tensor, index_t offset) {
    switch (tensor.type) {
        case StoredType::fp32:
            return static_cast<double>(at<float>(tensor.data, offset));
        case StoredType::fp64:
            return at<double>(tensor.data, offset);
        case StoredType::bf16:
            return static_cast<double>(from_bf16(at<unsigned short>(tensor.data, offset)));
        case StoredType::fp16:
            return static_cast<double>(from_fp16(at<unsigned short>(tensor.data, offset)));
        case StoredType::s8:
            return at<std::int8_t>(tensor.data, offset);
        case StoredType::s32:
            return at<std::int32_t>(tensor.data, offset);
        case StoredType::s64:
            return static_cast<double>(at<std::int64_t>(tensor.data, offset));
    }
    return 0.0;
}

std::vector<double> stored_values(const StoredTensor& tensor) {
    std::vector<index_t> index(tensor.shape.size(), 0);
    std::vector<double> values;
    values.reserve(static_cast<std::size_t>(tensor.size()));
    for (index_t i = 0; i < tensor.size(); ++i) {
        index_t offset = 0;
        for (std::size_t d = 0; d < index.size(); ++d) offset += index[d] * tensor.strides[d];
        values.push_back(stored_value(tensor, offset));
        for (std::size_t d = index.size(); d-- > 0 && ++index[d] == tensor.shape[d];) index[d] = 0;
    }
    return values;
}

}  // namespace resfuse
