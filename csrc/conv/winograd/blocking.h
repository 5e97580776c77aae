// How a Winograd convolution is cut into tiles, and these into blocks for tasks.
#pragma once

#include "plan/algorithm.h"

namespace resfuse {

// The tiles of one image. Where the last row or column of tiles has fewer outputs and the image is small, they are of
// an edge kind (WinogradKernels) with fewer products.
struct WinogradTiles {
    index_t frequencies;             // products of a whole tile
    index_t rows, cols;              // of tiles
    int edge_row = 0, edge_col = 0;  // kind of the last row and column; 0: like the others
    index_t products = 0;            // of all tiles and phases
    index_t sums = 0;                // of all phases' products
    index_t calls = 0;               // products of matrices that compute them, for each panel of weights
    index_t per_image() const { return rows * cols; }
    bool has_edges() const { return edge_row != 0 || edge_col != 0; }
};
WinogradTiles winograd_tiles(const WinogradKernels& winograd, Extent out);

// How a Winograd convolution's tiles are blocked; see winograd_step.cpp for the two forms.
struct WinogradBlocking {
    bool split;           // transformed inputs shared between threads instead of private to a block
    index_t block;        // tiles of one task at most
    index_t panel_group;  // weight panels of one task whose sums it keeps
    index_t groups;       // of channels of one task (fused form)
    index_t parts = 1;    // of the weight panels, a task each (fused form)
};

// A blocking and the bytes that go through it from beyond L2.
struct WinogradSchedule {
    WinogradBlocking blocking;
    double traffic;
};
WinogradSchedule winograd_schedule(const Layer& layer, const WinogradKernels& winograd, const WinogradTiles& image,
                                   index_t images, int threads, const KernelTable& kernels);

// Of its products: channels; words come in pairs.
index_t winograd_depth(const Layer& layer);

// Of packed weights.
std::size_t winograd_packed_bytes(const Layer& layer, const WinogradKernels& winograd, const KernelTable& kernels);

}  // namespace resfuse
