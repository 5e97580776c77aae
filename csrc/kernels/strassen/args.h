// Arguments of Strassen's algorithm (strassen.h).
#pragma once

#include "kernels/types.h"

namespace resfuse {

// One level of Strassen's algorithm for 1x1 convolutions (strassen.h). Its rows are pairs of pixels, not too many: of
// each panel seven sums of all of them pass through L1.
constexpr index_t kMostStrassenPairs = 112;
constexpr index_t kStrassenProducts = 7;
struct StrassenOperandsArgs {
    const void* first;  // of the first pair's pixels
    const void* second;
    index_t pair;  // elements from a pair to the next
    index_t pairs;
    index_t half;  // of the channels
    const float* channel_scale;
    float* to;      // rows of seven operands
    index_t pitch;  // floats between those rows
};

struct StrassenProductsArgs {
    const float* operands;  // as StrassenOperandsArgs leaves them
    index_t pitch;
    index_t half;          // of the channels
    index_t pairs;         // kMostStrassenPairs at most
    bool lone;             // the last pair lacks its second pixel
    const float* weights;  // [panels][7][half][tile_cols]
    index_t panels;        // of a half of the output channels
    index_t chunk;
    void* c;  // the first pair's first pixel
    index_t pixel;
    const void* residual;  // likewise, or null
    index_t residual_pixel;
    index_t right;  // from the first half of the output channels to the second
    const float* scale;
    const float* bias;
    float floor;
    const void* next;   // the pairs to come, of pixels, or null
    index_t next_pair;  // elements between them
};

// The weights w[k][c] of a 1x1 convolution for Strassen's products: a panel of the first half of the output channels
// and the panel as far into the second half.
struct PackStrassenArgs {
    const float* weight;
    index_t stride_k, stride_c;
    index_t first_k;  // of the panel in the first half
    index_t half_k;   // channels of a half
    index_t half_c;
    const float* powers[2];      // per panel: of each output channel, a power of two like its weights
    const float* channel_scale;  // likewise of each input channel
    float* packed;               // [7][half_c][tile_cols]
};

}  // namespace resfuse
