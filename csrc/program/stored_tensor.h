// Parameters as the user, or a file, holds them.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/types.h"

namespace resfuse {

enum class StoredType : int { fp32, fp64, bf16, fp16, s8, s32, s64 };
constexpr int kStoredTypes = 7;

index_t stored_bytes(StoredType type);
const char* stored_name(StoredType type);

// Elements in memory that somebody else keeps; strides count elements.
struct StoredTensor {
    const void* data = nullptr;
    StoredType type = StoredType::fp32;
    std::vector<index_t> shape, strides;

    index_t size() const;
    bool is_integer() const { return type == StoredType::s8 || type == StoredType::s32 || type == StoredType::s64; }
};

// Of a shape's elements without gaps, the last dimension's neighbours.
std::vector<index_t> contiguous_strides(std::span<const index_t> shape);

// "[2, 3]"
std::string shape_text(std::span<const index_t> shape);

// The element so many elements behind the first.
double stored_value(const StoredTensor& tensor, index_t offset);

// All elements in the order of their indices.
std::vector<double> stored_values(const StoredTensor& tensor);

// 16-bit elements and back, rounded to nearest even.
float from_bf16(unsigned short bits);
float from_fp16(unsigned short bits);
unsigned short to_bf16(float value);
unsigned short to_fp16(float value);

}  // namespace resfuse
