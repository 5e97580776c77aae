// Arguments of products in pairs of terms (kernels/gemm/paired_tile.h).
#pragma once

#include "kernels/types.h"

namespace resfuse {

// Products in pairs of terms (paired_tile.h): steps of the reduction until a sum is stored, at most, and floats of a
// row, behind whose steps lines hold one for each of these sums and one more.
constexpr index_t kPairedChunk = 192;
constexpr index_t paired_pitch(index_t depth) {
    return depth + ((depth + kPairedChunk - 1) / kPairedChunk / kLineFloats + 1) * kLineFloats;
}
struct PairedRowsArgs {
    const void* x;
    index_t pixel;  // elements between rows
    index_t rows, depth;
    const float* step_scale;
    float* to;  // paired_pitch(depth) floats a row
};

// A panel of weights for them: [depth and a row per chunk][tile_cols], at whose end lies what pack_direct makes.
struct PackPairedArgs {
    float* panel;
    index_t depth;
    const float* powers;      // of each output channel, a power of two like its weights
    const float* step_scale;  // likewise of each step
};

}  // namespace resfuse
