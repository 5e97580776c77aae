// Arguments of kernels that compute with bytes, and the table of them.
#pragma once

#include <cstdint>

#include "kernels/gemm/args.h"
#include "kernels/grouped/args.h"
#include "kernels/layout/args.h"
#include "kernels/pool/args.h"
#include "kernels/types.h"
#include "kernels/winograd/args.h"

namespace resfuse {

// How real numbers become outputs: as they are, or as bytes clamp(round(v * steps), low, high) + zero_point.
struct OutputArgs {
    DType type;  // fp32 or u8
    ActivationArgs activation = {Activation::none, 0.0f};
    float steps = 1.0f;  // of the output's scale, where numbers do not come in these already
    float low, high;     // of u8, less the zero point; of fp32 `low` alone: 0 for ReLU, else -inf
    int zero_point = 0;
};

// What becomes of a convolution's sums once they are scaled: a residual is added, times a factor.
struct Int8Epilogue {
    DType residual_type = DType::fp32;
    float residual_factor = 0.0f;
    OutputArgs output{};
};

// What is added to outputs, in the units that these come in: bytes or floats, times a factor.
struct AddendArgs {
    const void* data = nullptr;  // null: nothing
    DType type = DType::fp32;
    float factor = 1.0f;
};

// Panels of C = output((A * B + offset) * scale + bias + residual), A of bytes or words (Int8Kernels), sums exact in 32
// bits. `product` holds what is said in GemmArgs, but for the epilogue's last steps; scale and bias of all columns.
struct Int8GemmArgs {
    GemmArgs product;
    const std::int32_t* offset;  // tile_cols a panel; null: nothing
    Int8Epilogue epilogue;
};

// One panel of quantised weights [cols][depth], taps of segments next to each other: a segment is padded with zeros to
// `padded` ones, whole units.
struct PackInt8Args {
    const std::int8_t* weights;
    index_t depth;
    index_t segments, segment_length;  // depth = segments * segment_length
    index_t padded;
    index_t cols;
    void* packed;
};

// A convolution in groups of few channels; weights are whole numbers.
struct Int8GroupedArgs {
    GroupedArgs grouped;
    DType type;  // of the image: real numbers are made bytes of `range`
    Quantization range;
    Int8Epilogue epilogue;
};
constexpr int kMostChannelsOfByteGroups = 4;  // larger groups are products of panels

// A copy (BandArgs) as bytes or words, real numbers by `range`; what lies outside the image stands for zero.
struct Int8BandArgs {
    BandArgs band;
    Quantization range;
};

// Average pools of bytes: outputs of numbers in units of the input's scale times `output.steps`.
struct Int8AvgPoolArgs {
    AvgPoolArgs pool;
    int zero_point;  // of the input
    OutputArgs output;
};

// Means over the pixels of some channels of an image of bytes, times `output.steps`.
struct Int8MeanArgs {
    ImageView image;
    index_t channels;
    Quantization range;
    void* y;
    OutputArgs output;
};

// output(x * scale + bias + residual) of pixels some elements apart, x of bytes or floats: scale and bias are by
// channel and the quantisation of x is in them.
struct Int8AffineArgs {
    const void* x;
    index_t x_pixel;
    DType type;
    index_t rows, channels;
    const float *scale, *bias;
    AddendArgs residual;
    index_t residual_pixel;
    void* y;
    index_t y_pixel;
    OutputArgs output;
};

// The output transform of exact Winograd sums, and outputs as Int8GemmArgs has them.
struct Int8WinogradOutputArgs {
    WinogradOutputArgs tiles;
    const std::int32_t* centre;  // of each channel's possible sums
    const std::int32_t* offset;
    const float* scale;
    Int8Epilogue epilogue;
};

// By the kinds of a tile's rows and columns, as WinogradTransforms.
struct Int8WinogradTransforms {
    void (*input[3][3])(const WinogradInputArgs&);
    void (*output[3][3])(const Int8WinogradOutputArgs&);
};

struct Int8Kernels {
    int operand_bytes;        // of direct products: bytes of u8 times s8, or words of s16 times s16
    Units units;              // of their reduction
    int taken_from_operands;  // by direct products: their sums lack so much of each operand
    void (*gemm)(const Int8GemmArgs&);
    void (*pack)(const PackInt8Args&);
    index_t (*packed_bytes)(index_t depth);    // of a panel, of whole units
    void (*copy_floats)(const Int8BandArgs&);  // real numbers to operands
    void (*copy_bytes)(const Int8BandArgs&);   // bytes to operands
    void (*grouped)(const Int8GroupedArgs&);
    void (*avg_pool)(const Int8AvgPoolArgs&);
    void (*mean)(const Int8MeanArgs&);
    void (*affine)(const Int8AffineArgs&);
    WinogradKernels winograd;  // F(4x4, 3x3)
    double winograd_terms;     // of its products (Units)
    Int8WinogradTransforms winograd_transforms;
    void (*winograd_products)(const WinogradProductsArgs&);
    void (*pack_winograd)(const PackInt8Args&);
};

}  // namespace resfuse
