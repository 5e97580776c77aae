// What all kernels speak of: lengths, images, element types.
//
// Headers of arguments are included by translation units compiled for different instruction sets, so they hold plain
// data only: no inline function bodies that a wide-ISA build could emit and the linker then keep for everybody.
#pragma once

#include <cstddef>

namespace resfuse {

using index_t = std::ptrdiff_t;
constexpr index_t kLineFloats = 16;  // of a cache line

// Feature maps are void* in arguments: a kernel is compiled for the type of their elements. Weights, scratch, scales
// and biases are fp32. Strides and offsets count elements.

// A contiguous-channel (NHWC) image: the pixel (y, x) starts y * row + x * pixel elements from data.
struct ImageView {
    const void* data;
    index_t height;
    index_t width;
    index_t row;
    index_t pixel;
};

// The windows of a pool or a convolution, of pixels `dilation` apart; they may reach past the image.
struct WindowArgs {
    index_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
};

// Element types of tensors in memory. u8: real numbers as bytes, by a Quantization.
enum class DType : int { fp32, fp64, bf16, fp16, u8 };
constexpr int kDTypes = 5;
constexpr index_t kElementBytes[kDTypes] = {4, 8, 2, 2, 1};

// A byte q stands for (q - zero_point) * scale.
struct Quantization {
    float scale;
    int zero_point;  // 0 to 255
};

}  // namespace resfuse
