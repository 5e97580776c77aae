// Arguments of matrix products and of packing weights for them.
#pragma once

#include "kernels/activation/args.h"
#include "kernels/types.h"

namespace resfuse {

// Panels of C = act(A * B * scale + bias + residual), one after the other. Row i of A starts at a + i * lda; its
// reduction dimension is made of `segments` runs of `segment_length` contiguous floats at a + i * lda +
// segment_offset[s] (an implicit im2col). Each panel of B is packed [segments * segment_length][tile_cols].
struct GemmArgs {
    const void* a;  // floats; of Int8GemmArgs operands
    index_t lda;
    const index_t* segment_offset;
    index_t segments;
    index_t segment_length;
    index_t chunk;  // steps of the reduction until a sum is stored, a multiple of two cache lines
    const void* b;  // likewise
    void* c;
    index_t ldc;
    index_t rows;
    index_t cols;          // valid columns of all panels
    const float* scale;    // tile_cols floats a panel, or null
    const float* bias;     // tile_cols floats a panel, or null
    const void* residual;  // addressed like c with ldr, or null
    index_t ldr;
    float floor;  // lower clamp of the epilogue: 0 for ReLU, -inf for none
    // Of single elements: before they are rounded, of fp32 in a pass over what is in L1.
    ActivationArgs activation = {Activation::none, 0.0f};
    // Such rows of several lines, from one to the next so many elements apart: where the product takes lines (Units).
    index_t lines = 1;
    index_t line_a = 0, line_c = 0, line_r = 0;
};

// Products of direct convolutions and linear layers of small operands, of which an instruction multiplies several.
struct Units {
    index_t operands;  // of a unit: the reduction is cut into whole ones
    double terms;      // that a lane adds up in the time of one fp32 multiply-add
    int tile_rows;     // of rows that a register tile reads
    bool takes_lines;  // several lines of rows at once (GemmArgs)
};

// One panel of weights w[k][c][r][s] (torch's order, strides in floats), zeros past `cols`. Direct ones are copied as
// they are to [kernel_h][kernel_w][channels][tile_cols]; Winograd ones are scaled per output channel and transformed in
// double precision.
struct PackPanelArgs {
    const float* weight;
    index_t stride_k, stride_c, stride_h, stride_w;
    const double* scale;  // per output channel, or null (Winograd only)
    index_t first_k;
    index_t cols;
    index_t channels;
    index_t kernel_h, kernel_w;
    float* packed;
};

}  // namespace resfuse
