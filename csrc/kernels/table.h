// The interface between the engine and the kernels: plain argument structs and one table of function pointers per ISA.
//
// This header is included by translation units compiled for different instruction sets, so it holds plain data only:
// no inline function bodies that a wide-ISA build could emit and the linker then keep for everybody.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace resfuse {

using index_t = std::ptrdiff_t;

constexpr index_t kLineFloats = 16;  // of a cache line

// Panels of C = act(A * B * scale + bias + residual), one after the other. Row i of A starts at a + i * lda; its
// reduction dimension is made of `segments` runs of `segment_length` contiguous floats at a + i * lda +
// segment_offset[s] (an implicit im2col). Each panel of B is packed [segments * segment_length][tile_cols].
struct GemmArgs {
    const float* a;
    index_t lda;
    const index_t* segment_offset;
    index_t segments;
    index_t segment_length;
    index_t chunk;  // steps of the reduction until a sum is stored, a multiple of two cache lines
    const float* b;
    float* c;
    index_t ldc;
    index_t rows;
    index_t cols;           // valid columns of all panels
    const float* scale;     // tile_cols floats a panel, or null
    const float* bias;      // tile_cols floats a panel, or null
    const float* residual;  // addressed like c with ldr, or null
    index_t ldr;
    float floor;  // lower clamp of the epilogue: 0 for ReLU, -inf for none
};

// Products in pairs of terms (paired_tile.h): steps of the reduction until a sum is stored, at most, and floats of a
// row, behind whose steps lines hold one for each of these sums and one more.
constexpr index_t kPairedChunk = 192;
constexpr index_t paired_pitch(index_t depth) {
    return depth + ((depth + kPairedChunk - 1) / kPairedChunk / kLineFloats + 1) * kLineFloats;
}
struct PairedRowsArgs {
    const float* x;
    index_t pixel;  // floats between rows
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

// One level of Strassen's algorithm for 1x1 convolutions (strassen.h). Its rows are pairs of pixels, not too many: of
// each panel seven sums of all of them pass through L1.
constexpr index_t kMostStrassenPairs = 112;
constexpr index_t kStrassenProducts = 7;
struct StrassenOperandsArgs {
    const float* first;  // of the first pair's pixels
    const float* second;
    index_t pair;  // floats from a pair to the next
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
    float* c;  // the first pair's first pixel
    index_t pixel;
    const float* residual;  // likewise, or null
    index_t residual_pixel;
    index_t right;  // from the first half of the output channels to the second
    const float* scale;
    const float* bias;
    float floor;
    const float* next;  // the pairs to come, of pixels, or null
    index_t next_pair;  // floats between them
};

// A contiguous-channel (NHWC) image: the pixel (y, x) starts at data + y * row + x * pixel.
struct ImageView {
    const float* data;
    index_t height;
    index_t width;
    index_t row;
    index_t pixel;
};

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
    // Element (group g, frequency f, tile t, channel c) at g * group_stride + f * frequency_stride + t * channels + c.
    float* v;
    index_t group_stride = 0;  // of one group: any
    index_t frequency_stride;
    const float* zeros;  // as many as a pixel has channels, read for padding
};

// M = V * weights of one panel, or M plus that, for each frequency's own tiles [begin[f], end[f]).
struct WinogradProductsArgs {
    const float* v;  // element (f, t, c) at f * v_frequency + t * depth + c
    index_t v_frequency;
    const float* weights;   // matrices [depth][tile_cols]
    const index_t* matrix;  // which of them, of each frequency
    float* m;               // element (f, t, k) at f * m_frequency + t * tile_cols + k
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
    const float* m;  // element (f, t, k) at f * frequency_stride + t * tile_stride + k
    index_t frequency_stride;
    index_t tile_stride;
    float* y;  // NHWC image of the whole layer, already advanced to the panel's first channel
    index_t height;
    index_t width;
    index_t pixel;           // floats between pixels of y
    index_t residual_pixel;  // and of the residual
    index_t cols;            // valid channels, at most tile_cols
    index_t y0, x0;          // of tile 0
    index_t tiles_per_row;
    index_t first_tile;
    index_t tiles;
    const float* bias;
    const float* residual;
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
    const float* residual;  // or null
    index_t residual_pixel;
    float floor;
    float* y;
    index_t pixel;
};

// Copies rows [y0, y0 + rows) x columns [x0, x0 + cols) of a strided image into an NHWC band, row behind row; what lies
// outside the image becomes `fill`.
struct BandArgs {
    const float* image;
    index_t height;
    index_t width;
    index_t channels;
    index_t stride_h;
    index_t stride_w;
    index_t stride_c;
    index_t y0;
    index_t rows;
    index_t x0;
    index_t cols;
    float fill;
    float* band;
    index_t pixel;  // floats between pixels of the band
};

// y[col * y_pitch + row] = x[row * pitch + col]
struct TransposeArgs {
    const float* x;
    index_t rows, cols, pitch;
    float* y;
    index_t y_pitch;
};

// Output channels [channel_begin, channel_end) and rows of one image, for a convolution whose groups have as many
// output as input channels, fewer than a vector. `channel_begin` is a multiple of vector_floats.
struct GroupedArgs {
    ImageView image;
    index_t channels;
    index_t group;  // channels of a group: 1, or another divisor of vector_floats
    index_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    // [channels / vector_floats, rounded up][points][group][vector_floats]: entry (i, l) is that of input channel
    // (l ^ i) % group. Points are the kernel's taps, of F(2x2, 3x3) its 16 products.
    const float* weight;
    const float* scale;  // channels floats
    const float* bias;   // channels floats
    float* y;
    index_t y_pixel;
    index_t out_width;
    index_t out_row_begin, out_row_end;  // F(2x2, 3x3): the first one is even
    index_t channel_begin, channel_end;
    const float* residual;  // or null
    index_t residual_pixel;
    float floor;
    float* rows;  // scratch: span of the kernel's rows x input columns with padding x vector_floats; not of F(2x2, 3x3)
};

struct MaxPoolArgs {
    ImageView image;
    index_t channels;
    index_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    float* y;
    index_t y_row;  // floats between output rows
    index_t out_width;
    index_t out_row_begin;
    index_t out_row_end;
};

// The means of the same windows, without dilation.
struct AvgPoolArgs {
    MaxPoolArgs pool;
    index_t pad_bottom, pad_right;
    bool counts_padding;  // as zeros
};

// Element types of tensors that come from outside.
enum class DType : int { fp32, fp64, bf16, fp16 };
constexpr int kDTypes = 4;

// Sums over the pixels of one image. Strides in elements; `sums` are fp64 for fp64, fp32 for all others. The walks want
// the columns to be the pixels with the smaller stride.
struct PoolSumArgs {
    const void* x;
    index_t channels, rows, cols;
    index_t stride_c, stride_h, stride_w;
    void* sums;     // channels accumulators
    bool by_pixel;  // the order of each channel's sum follows from the number of pixels alone, not from strides
};

// Means of sums that were taken in `parts` parts: y = (sums[0] + sums[part_stride] + ...) / pixels.
struct PoolMeanArgs {
    const void* sums;
    index_t parts, part_stride;
    index_t channels;
    index_t pixels;
    void* y;
    index_t stride_y;
};

// dx[c, h, w] = grad[c] / pixels.
struct PoolSpreadArgs {
    const void* grad;
    index_t stride_grad;
    index_t pixels;
    void* dx;
    index_t channels, rows, cols;
    index_t stride_c, stride_h, stride_w;
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

// Batch normalisation in training. Tensors are rows of channels, dense: the pixels of channels_last images.
struct NormSumsArgs {
    const float* x;
    index_t rows, channels;
    const float* shift;  // per channel, near its mean
    float* scratch;      // 2 * channels
    double* sums;        // [2][channels]
};

// y = max((x - mean) * scale + bias + residual, floor)
struct NormApplyArgs {
    const float* x;
    const float* residual;  // or null
    index_t rows, channels;
    const float *mean, *scale, *bias;
    float floor;
    float* y;
};

// The gradient behind a ReLU: that of its output, where the output is positive.
struct NormGrad {
    const float* grad;
    const float* y;             // the ReLU's output, or null
    const float *scale, *bias;  // else what it is computed from; null: there is no ReLU
    const float *x, *mean;
    index_t rows, channels;
};

struct NormGradSumsArgs {
    NormGrad g;
    float* scratch;  // 2 * channels
    double* sums;    // [2][channels]
};

// dx = of_grad * g + of_x * (x - mean) + constant, dresidual = g; both may be grad itself.
struct NormGradArgs {
    NormGrad g;
    const float *of_grad, *of_x, *constant;
    float* dx;
    float* dresidual;  // or null
};

// c[i][j] (+)= sum over steps t of a[t * lda + i] * b[t * ldb + j], for tile_cols columns of `panels` panels of b.
struct OuterProductArgs {
    const float* a;
    index_t lda;
    const float* b;
    index_t b_panel, ldb;  // floats between panels and steps
    float* c;
    index_t c_panel, ldc;
    index_t rows, panels, steps;
    bool accumulate;
    // Read next: fetched meanwhile.
    const float *next_a = nullptr, *next_b = nullptr;
    index_t next_a_floats = 0, next_b_floats = 0;
};

// Rows of channels into panels of tile_cols columns, zeros past the last channel.
struct PackRowsArgs {
    const float* x;
    index_t pixel;  // floats between rows
    index_t rows, channels;
    float* panels;
    index_t panel_stride;
};

// Windows of `pixels` output pixels, each `rows` runs of `floats` contiguous floats, one after the other in `to`.
struct CopyWindowsArgs {
    const float* x;
    index_t pixel;  // floats between windows
    index_t row;    // between the runs of one
    index_t pixels, rows, floats;
    float* to;
    index_t pitch;  // floats between windows in `to`
};

// Max-pooling that remembers where its maxima were: tap r * kernel_w + s of each window, the first of equals.
struct MaxPoolIndexArgs {
    MaxPoolArgs pool;
    std::uint8_t* taps;  // as y
};

// Its gradient, without dilation, for rows [row_begin, row_end) of the input: each pixel gathers from the windows whose
// maximum it was.
struct MaxPoolGradArgs {
    const float* grad;         // dense
    const std::uint8_t* taps;  // dense
    index_t out_height, out_width, channels;
    index_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
    float* dx;  // of row `row_begin`, dense
    index_t width, row_begin, row_end;
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

// softmax runs over the n numbers it is given, the others element by element.
enum class Activation : int { none, relu, tanh, sigmoid, softmax, silu, gelu, leaky_relu };

struct ActivationArgs {
    Activation kind;
    float slope;  // of leaky_relu
};

// The functions of one instruction set. Everything here is a pure function on pointers and strides: no allocation,
// no threads, no torch.
// Bit i: a dimension of a tile, whole or an edge, needs product i.
using WinogradPoints = std::array<std::uint32_t, 3>;

// One kind of Winograd tile. A dimension of a tile is whole, or one of two edges with 3 and 2 outputs; kernels are
// numbered by the kinds of their rows and columns. Kinds without edges have one kernel.
struct WinogradKernels {
    index_t tile;                   // outputs of a whole tile in one dimension
    index_t points;                 // and its products
    index_t stride;                 // of the convolution
    index_t weight_points;          // rows of transformed weights in one dimension
    index_t chunk;                  // of its products, shorter where the output transform magnifies their errors most
    WinogradPoints kind_points[2];  // of even phases, the only ones at stride 1, and odd ones
    void (*input[3][3])(const WinogradInputArgs&);
    void (*output[3][3])(const WinogradOutputArgs&);
    // For the weights' gradient at stride 1; null elsewhere.
    void (*gradient)(const WinogradGradientArgs&);
    void (*weight_gradient)(const WinogradWeightGradientArgs&);
    void (*pack)(const PackPanelArgs&);  // packs [weight_points * weight_points][channels][tile_cols]
};
constexpr int kWinogradKinds = 3;

struct KernelTable {
    const char* name;
    int vector_floats;
    int tile_rows;  // rows of a full register tile
    int tile_cols;  // columns of a weight panel
    void (*gemm)(const GemmArgs&);
    void (*winograd_products)(const WinogradProductsArgs&);
    WinogradKernels winograd[kWinogradKinds];  // F(2x2, 3x3), F(4x4, 3x3), F(4x4, 2x2) of the phases of stride 2
    void (*winograd_row_input)(const WinogradRowInputArgs&);
    void (*winograd_row_output)(const WinogradRowOutputArgs&);
    void (*pack_winograd_rows)(const PackPanelArgs&);
    void (*pack_direct)(const PackPanelArgs&);
    void (*strassen_operands)(const StrassenOperandsArgs&);
    void (*strassen_products)(const StrassenProductsArgs&);
    void (*pack_strassen)(const PackStrassenArgs&);
    // Products in pairs of terms (paired_tile.h); null at levels without them.
    int paired_tile_rows;
    void (*paired_rows)(const PairedRowsArgs&);
    void (*paired_gemm)(const GemmArgs&);
    void (*column_squares)(const float* panel, index_t depth, double* squares);  // of each output channel's weights
    void (*step_squares)(const float* panel, index_t depth, const float* powers, float* squares);  // divided by powers
    void (*pack_paired)(const PackPairedArgs&);
    index_t (*paired_matrix_rows)(index_t depth);
    void (*copy_band)(const BandArgs&);
    void (*transpose)(const TransposeArgs&);
    void (*grouped)(const GroupedArgs&);
    void (*grouped_f2)(const GroupedArgs&);
    void (*norm_sums)(const NormSumsArgs&);
    void (*norm_apply)(const NormApplyArgs&);
    void (*norm_grad_sums)(const NormGradSumsArgs&);
    void (*norm_grad)(const NormGradArgs&);
    void (*outer_product)(const OuterProductArgs&);
    void (*pack_rows)(const PackRowsArgs&);
    void (*copy_windows)(const CopyWindowsArgs&);
    void (*max_pool_index)(const MaxPoolIndexArgs&);
    void (*max_pool_grad)(const MaxPoolGradArgs&);
    void (*max_pool)(const MaxPoolArgs&);
    void (*avg_pool)(const AvgPoolArgs&);
    // Global average pooling, by element type.
    void (*pool_sum[kDTypes])(const PoolSumArgs&);
    void (*pool_mean[kDTypes])(const PoolMeanArgs&);
    void (*pool_spread[kDTypes])(const PoolSpreadArgs&);
    std::uint32_t (*read_all)(const void*, index_t bytes);  // a checksum of every byte
    index_t (*multiply_adds_at_peak)(index_t steps);        // on registers; returns how many
    void (*activate)(ActivationArgs, float*, index_t);      // in place, for activations that are not a clamp
};

const KernelTable& generic_kernels();
#if defined(RESFUSE_X86)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& zen4_kernels();
#endif

}  // namespace resfuse
