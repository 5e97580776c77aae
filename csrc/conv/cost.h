// The cost model: pure functions of a layer's shape, the ISA and the cache sizes. The same input always takes the same
// path, and nothing here depends on the number of threads, so results do not either.
#pragma once

#include "program/program.h"

namespace resfuse {

// The tiles of one image. Where the last row or column of tiles has fewer outputs and the image is small, they are of
// an edge kind (WinogradKernels) with fewer products.
struct WinogradTiles {
    index_t frequencies;             // products of a whole tile
    index_t rows, cols;              // of tiles
    int edge_row = 0, edge_col = 0;  // kind of the last row and column; 0: like the others
    index_t products = 0;            // of all tiles and phases
    index_t sums = 0;                // of all phases' products
    index_t per_image() const { return rows * cols; }
    bool has_edges() const { return edge_row != 0 || edge_col != 0; }
};
WinogradTiles winograd_tiles(const WinogradKernels& winograd, Extent out);

// The rate at which a core streams weights: from one run to the next those of a small program stay in L3.
double stream_bytes_per_cycle(const std::vector<Layer>& layers, const KernelTable& kernels);

// Cycles of one core for a convolution over `batch` images, if it had the machine to itself.
double estimated_cycles(const Layer& layer, Algorithm algorithm, Extent out, index_t batch, double bytes_per_cycle,
                        const KernelTable& kernels);

// The concrete algorithm for a convolution over `batch` images of output extent `out`.
Algorithm choose_algorithm(const Layer& layer, Extent out, index_t batch, double bytes_per_cycle,
                           const KernelTable& kernels);

// Images that go through a run of layers together so that their activations stay in cache, given the bytes of packed
// weights that each pass streams and of activations per image.
index_t images_per_wave(std::size_t weight_bytes, std::size_t activation_bytes, index_t batch, int threads);

// Steps of a product's reduction until its sums are stored.
index_t gemm_chunk(const KernelTable& kernels);

// Whether each of some threads that share out a layer's weights makes all operands from the input rather than wait for
// what the others make of their part: there are few threads, and lines come slowly from another core's cache, above all
// from one behind another L3.
bool repeats_operands(int threads);

// Pairs of pixels whose operands of Strassen's algorithm a task keeps, at most: a whole number of register tiles.
index_t strassen_block(const Layer& layer, const KernelTable& kernels);

// Of products in pairs of terms, the pixels whose rows a task keeps: of `total` for some threads.
index_t paired_block(const Layer& layer, index_t total, int threads, const KernelTable& kernels);

// How a Winograd convolution's tiles are blocked; see winograd_step.cpp for the two forms.
struct WinogradBlocking {
    bool split;           // transformed inputs shared between threads instead of private to a block
    index_t block;        // tiles of one task at most
    index_t panel_group;  // weight panels of one task whose sums it keeps
    index_t groups;       // of channels of one task (fused form)
    index_t parts = 1;    // of the weight panels, a task each (fused form)
};
WinogradBlocking winograd_blocking(const Layer& layer, Algorithm algorithm, const WinogradTiles& image, index_t images,
                                   int threads, const KernelTable& kernels);

}  // namespace resfuse
