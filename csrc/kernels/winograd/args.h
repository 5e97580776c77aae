// Arguments of Winograd's algorithms, and the table of their kernels.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/gemm/args.h"
#include "kernels/types.h"

namespace resfuse {

// Input transform V = B^T d B of `tiles` Winograd tiles of one image, tile numbers counted row by row.
struct WinogradInputArgs {
    ImageView image;
    index_t channels;  // of a group
    index_t groups = 1;
    index_t pad_top;
    index_t pad_left;
    index_t tiles_per_row;
    index_t first_tile;
    index_t tiles;
    index_t phase = 0;  // of stride 2: 2 * (odd rows) + odd columns
    // Operand (group g, frequency f, tile t, channel c) at g * group_stride + f * frequency_stride + t * channels + c.
    // Floats; of bytes words, and channels are rounded up to pairs.
    void* v;
    index_t group_stride = 0;  // of one group: any
    index_t frequency_stride;
    const void* zeros;  // as many as a pixel has channels, read for padding
};

// M = V * weights of one panel, or M plus that, for each frequency's own tiles [begin[f], end[f]).
struct WinogradProductsArgs {
    const void* v;  // operand (f, t, c) at f * v_frequency + t * depth + c: floats, or words
    index_t v_frequency;
    const void* weights;    // matrices [depth][tile_cols], of words in pairs
    const index_t* matrix;  // which of them, of each frequency
    float* m;               // sum (f, t, k) at f * m_frequency + t * tile_cols + k; of words s32
    index_t m_frequency;
    index_t frequencies;  // at most kMostFrequencies
    index_t depth;
    index_t cols;  // valid columns of the panel
    const index_t *begin, *end;
    index_t chunk;  // steps of the reduction until a sum is stored
    bool accumulate;
};
constexpr index_t kMostFrequencies = 36;

// Output transform y = act(A^T m A + bias + residual) of `tiles` tiles of one image, for one panel of channels.
struct WinogradOutputArgs {
    const float* m;  // sum (f, t, k) at f * frequency_stride + t * tile_stride + k; of words s32
    index_t frequency_stride;
    index_t tile_stride;
    void* y;  // NHWC image of the whole layer, already advanced to the panel's first channel
    index_t height;
    index_t width;
    index_t pixel;           // elements between pixels of y
    index_t residual_pixel;  // and of the residual
    index_t cols;            // valid channels, at most tile_cols
    index_t y0, x0;          // of tile 0
    index_t tiles_per_row;
    index_t first_tile;
    index_t tiles;
    const float* bias;
    const void* residual;
    float floor;
};

// F(2, 7) of stride 2 along a row of a zero-padded band (winograd_rows.h).
constexpr int kRowFrequencies = 5;
constexpr int kRowProducts = 2 * kRowFrequencies - 1;  // of a tap row and channel: infinity has none of odd pixels
struct WinogradRowInputArgs {
    const float* band;  // a row of 4 * pairs + 5 pixels; a vector behind its end is read, but not used
    index_t pairs;      // of outputs
    index_t channels;
    // Element (f, pair, c) of four frequencies at f * frequency + pair * pitch + c, 2 * channels of them, of the one at
    // infinity `channels` at pair * infinity_pitch + c; a vector is written each time.
    float* v;
    index_t frequency, pitch;
    float* infinity;
    index_t infinity_pitch;
};

struct WinogradRowOutputArgs {
    const float* m;  // element (f, pair, k) at f * frequency + pair * tile_cols + k
    index_t frequency;
    index_t width;  // outputs
    index_t cols;   // valid channels, at most tile_cols
    const float* scale;
    const float* bias;
    const void* residual;  // or null
    index_t residual_pixel;
    float floor;
    void* y;
    index_t pixel;
};

// Tiles [first_tile, first_tile + tiles) of an image of gradients.
struct WinogradGradientArgs {
    ImageView image;
    index_t channels;
    index_t tiles_per_row, first_tile, tiles;
    float* panels;  // [points * points][panel][tile][tile_cols]
    index_t frequency_stride, panel_stride;
};

// Products [points * points][channels][...] of one panel into dw[k][c][r][s], strides in floats.
struct WinogradWeightGradientArgs {
    const float* products;
    index_t frequency_stride, product_row;
    index_t channels;
    index_t cols;
    float* dw;
    index_t stride_k, stride_c, stride_h, stride_w;
};

// Bit i: a dimension of a tile, whole or an edge, needs product i.
using WinogradPoints = std::array<std::uint32_t, 3>;

// The transforms of one kind of tile, of feature maps of one element type, numbered by the kinds of the tile's rows and
// columns: whole, or one of two edges with 3 and 2 outputs. Kinds without edges have one kernel.
struct WinogradTransforms {
    void (*input[3][3])(const WinogradInputArgs&);
    void (*output[3][3])(const WinogradOutputArgs&);
    void (*gradient)(const WinogradGradientArgs&);  // of whole tiles at stride 1, for the weights' gradient; or null
};

// One kind of Winograd tile. A dimension of a tile is whole, or one of two edges with 3 and 2 outputs.
struct WinogradKernels {
    int number;                     // of its transforms in a table
    bool has_edges;                 // whether there are kernels for them
    index_t tile;                   // outputs of a whole tile in one dimension
    index_t points;                 // and its products
    index_t operand_bytes;          // of these: floats, or words
    index_t stride;                 // of the convolution
    index_t weight_points;          // rows of transformed weights in one dimension
    index_t chunk;                  // of its products, shorter where the output transform magnifies their errors most
    WinogradPoints kind_points[2];  // of even phases, the only ones at stride 1, and odd ones
    void (*weight_gradient)(const WinogradWeightGradientArgs&);  // at stride 1; null elsewhere
    void (*pack)(const PackPanelArgs&);  // packs [weight_points * weight_points][channels][tile_cols]
};
constexpr int kWinogradKinds = 3;

}  // namespace resfuse
