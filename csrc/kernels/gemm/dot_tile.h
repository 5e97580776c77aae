// The register tile of dot products: units of a few small operands, 32 bits together, that one instruction multiplies
// and adds up. What is multiplied, and in which type it is summed up, a D says: Operand, Weight, their kUnit, Lane and
// the vector Sum of it, and add_products.
#pragma once

#include "kernels/gemm/tile.h"

namespace resfuse {
namespace {

// The 32 bits at p in all lanes.
template <class T>
[[gnu::always_inline]] inline VecBits broadcast_unit(const T* p) {
    std::uint32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return VecBits{} + bits;
}

constexpr index_t kDotBlockTiles = 8;          // of rows, whose sums stay in L1
constexpr index_t kDotChunkBytes = 16 * 1024;  // of a panel, that stay there too

// Some rows of A times a chunk of a panel: sums, kTileCols a row, are begun or added to.
template <class D>
struct DotTile {
    const typename D::Operand* a;
    index_t lda;
    const index_t* offsets;
    index_t segments, steps;  // steps of each segment, whole units
    const typename D::Weight* b;
    typename D::Lane* sums;
    bool accumulate;
    const typename D::Lane* offset = nullptr;  // what sums begin with; null: nothing
};

}  // namespace
}  // namespace resfuse
