// The interface between the engine and the kernels: one table of function pointers per ISA. Their arguments stand
// beside the kernels that take them.
#pragma once

#include "kernels/activation/args.h"
#include "kernels/gemm/args.h"
#include "kernels/gradients/args.h"
#include "kernels/grouped/args.h"
#include "kernels/int8/args.h"
#include "kernels/layout/args.h"
#include "kernels/norm/args.h"
#include "kernels/paired/args.h"
#include "kernels/pool/args.h"
#include "kernels/resize/args.h"
#include "kernels/strassen/args.h"
#include "kernels/winograd/args.h"

namespace resfuse {

// The kernels that read and write feature maps of one element type; null where a level has none.
struct ElementKernels {
    void (*gemm)(const GemmArgs&);  // reads fp32 rows
    // Where an instruction multiplies units of some of these elements, two or more: reads rows of them, in segments of
    // whole units, and weights that were packed as fp32 panels and then, in place, as units.
    Units pair_units;
    void (*pair_gemm)(const GemmArgs&);
    void (*pack_pairs)(float* panel, index_t depth);
    WinogradTransforms winograd[kWinogradKinds];
    void (*winograd_row_output)(const WinogradRowOutputArgs&);
    void (*strassen_operands)(const StrassenOperandsArgs&);
    void (*strassen_products)(const StrassenProductsArgs&);
    void (*paired_rows)(const PairedRowsArgs&);  // of products in pairs of terms (paired_tile.h)
    void (*paired_gemm)(const GemmArgs&);
    void (*grouped)(const GroupedArgs&);
    void (*grouped_f2)(const GroupedArgs&);
    void (*copy_band)(const BandArgs&);   // to fp32
    void (*copy_image)(const BandArgs&);  // to the same type
    void (*transpose)(const TransposeArgs&);
    void (*norm_apply)(const NormApplyArgs&);
    void (*norm_sums)(const NormSumsArgs&);
    void (*layer_norm)(const LayerNormArgs&);
    void (*resize_row)(const ResizeRowArgs&);
    void (*max_pool)(const MaxPoolArgs&);
    void (*avg_pool)(const AvgPoolArgs&);
    void (*activate)(const ActivateArgs&);  // activations that are not a clamp
    // Training.
    void (*norm_grad_sums)(const NormGradSumsArgs&);
    void (*norm_grad)(const NormGradArgs&);
    void (*copy_windows)(const CopyWindowsArgs&);
    void (*pack_rows)(const PackRowsArgs&);
    void (*max_pool_index)(const MaxPoolIndexArgs&);
    void (*max_pool_grad)(const MaxPoolGradArgs&);
    // Global average pooling.
    void (*pool_sum)(const PoolSumArgs&);
    void (*pool_mean)(const PoolMeanArgs&);
    void (*pool_spread)(const PoolSpreadArgs&);
};

// The functions of one instruction set. All are pure functions on pointers and strides: no allocation, no threads, no
// torch.
struct KernelTable {
    const char* name;
    int vector_floats;
    int tile_rows;         // rows of a full register tile
    int tile_cols;         // columns of a weight panel
    int paired_tile_rows;  // of products in pairs; 0 at levels without them

    // By the element type of feature maps.
    ElementKernels elements[kDTypes];
    Int8Kernels int8;

    // On fp32 scratch.
    WinogradKernels winograd[kWinogradKinds];  // F(2x2, 3x3), F(4x4, 3x3), F(4x4, 2x2) of the phases of stride 2
    void (*winograd_products)(const WinogradProductsArgs&);
    void (*winograd_row_input)(const WinogradRowInputArgs&);
    void (*depthwise_row)(const DepthwiseRowArgs&);

    // Where direct products of bytes and in pairs want longer rows than narrow inputs have; else null.
    void (*join_windows)(const JoinWindowsArgs&);

    // Weights.
    void (*pack_direct)(const PackPanelArgs&);
    void (*pack_winograd_rows)(const PackPanelArgs&);
    void (*pack_strassen)(const PackStrassenArgs&);
    void (*pack_paired)(const PackPairedArgs&);
    index_t (*paired_matrix_rows)(index_t depth);
    void (*column_squares)(const float* panel, index_t depth, double* squares);  // of each output channel's weights
    void (*step_squares)(const float* panel, index_t depth, const float* powers, float* squares);  // divided by powers

    void (*outer_product)(const OuterProductArgs&);  // of their gradients

    // The machine's own limits.
    std::uint32_t (*read_all)(const void*, index_t bytes);  // a checksum of every byte
    index_t (*multiply_adds_at_peak)(index_t steps);        // on registers; returns how many
};

// By value: what keeps a table for the whole process must not be compiled for one instruction set.
KernelTable generic_kernels();
#if defined(RESFUSE_X86)
KernelTable avx2_kernels();
KernelTable avx2_vnni_kernels();
KernelTable avx512_kernels();
KernelTable avx512_vnni_kernels();
KernelTable avx512_bf16_kernels();
KernelTable avx512_amx_kernels();
KernelTable zen4_kernels();
#elif defined(RESFUSE_ARM64)
KernelTable neon_kernels();
KernelTable neon_dotprod_kernels();
KernelTable neon_i8mm_kernels();
KernelTable neon_bf16_kernels();
#endif

}  // namespace resfuse
