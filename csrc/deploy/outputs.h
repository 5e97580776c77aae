// What becomes of a program's outputs before a user sees them.
#pragma once

#include <string>
#include <vector>

#include "plan/array4.h"
#include "program/stored_tensor.h"

namespace resfuse {

// Functions of each pixel's channels.
enum class Head { softmax, log_softmax, sigmoid, argmax };
Head parse_head(const std::string& name);

struct ModelOutput {
    std::string name;
    std::size_t output;  // of the program
    int rank;            // of the program's output: 4, or 2
    std::vector<Head> heads;
    bool is_index() const { return !heads.empty() && heads.back() == Head::argmax; }
};

// Dense float32 [N, C, H, W], in place; argmax leaves the indices in the first channel of each pixel.
void apply_heads(const std::vector<Head>& heads, float* data, const std::array<index_t, 4>& shape);

// Dense float32 or 16-bit elements [N, C, H, W] to memory of any strides and another type.
void copy_converted(const Array4& from, const StoredTensor& to);

}  // namespace resfuse
