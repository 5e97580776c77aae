// The cost model: pure functions of a layer's shape, the ISA and the cache sizes. The same input always takes the same
// path, and nothing here depends on the number of threads, so results do not either.
#pragma once

#include "engine/program.h"

namespace resfuse {

struct WinogradTiles {
    index_t frequencies, tile, per_row, per_image;
};
WinogradTiles winograd_tiles(Algorithm algorithm, Extent out);

// The concrete algorithm for a convolution over `batch` images of output extent `out`.
Algorithm choose_algorithm(const Layer& layer, Extent out, index_t batch, const KernelTable& kernels);

// Images that go through a run of layers together so that their activations stay in cache, given the bytes of packed
// weights that each pass streams and of activations per image.
index_t images_per_wave(std::size_t weight_bytes, std::size_t activation_bytes, index_t batch, int threads);

// How a Winograd convolution's tiles are blocked; see winograd_step.cpp for the two forms.
struct WinogradBlocking {
    bool split;           // transformed inputs shared between threads instead of private to a block
    index_t block;        // tiles of one task at most
    index_t panel_group;  // weight panels of one task (split form)
};
WinogradBlocking winograd_blocking(const Layer& layer, Algorithm algorithm, index_t tiles, int threads,
                                   const KernelTable& kernels);

}  // namespace resfuse
