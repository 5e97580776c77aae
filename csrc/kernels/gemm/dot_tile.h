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

// One unit is multiplied in the time of a multiply-add.
template <class D>
constexpr Units units_of() {
    return {.operands = D::kUnit, .terms = D::kUnit, .tile_rows = kTileRows, .takes_lines = false};
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

    // Rows of sums to begin with: what is there already, or the same for all rows.
    struct Rows {
        const typename D::Lane* first;
        index_t pitch;
        [[gnu::always_inline]] typename D::Sum load(int i, int j) const {
            return load_raw<typename D::Sum>(first + i * pitch + j * kVectorFloats);
        }
    };
    [[gnu::always_inline]] Rows begin() const {
        static constexpr typename D::Lane kNothing[kTileCols] = {};
        return {accumulate ? sums : offset ? offset : kNothing, accumulate ? kTileCols : 0};
    }
    [[gnu::always_inline]] void end(int i, int j, typename D::Sum sum) const {
        store_vector(sums + i * kTileCols + j * kVectorFloats, sum);
    }
};

}  // namespace
}  // namespace resfuse
