// Winograd's F(2x2, 3x3) for groups of as many channels as a vector has.
//
// The tiles of a block are transformed into L1, one product point after the other multiplies them with its matrix of
// weights in place, and they are transformed back.
#pragma once

#include "kernels/grouped/args.h"
#include "kernels/grouped/grouped.h"
#include "kernels/grouped/grouped_f2.h"
#include "kernels/winograd/points.h"

namespace resfuse {
namespace {

constexpr int kTilesAtOnce = kGroupedPixels;  // whose accumulators stay in registers
constexpr int kFewTiles = kTilesAtOnce > 8 ? 8 : 4;
constexpr int kF2Products = F2::in * F2::in;

// Of each point the vectors of a block's tiles: inputs, then products.
struct alignas(64) BlockPoints {
    float at[kF2Products][kTilesAtOnce][kVectorFloats];
};

template <int Tiles>
[[gnu::always_inline]] inline void multiply_points(const float* weight, BlockPoints& block) {
    for (auto& point : block.at) {
        Vec acc[Tiles];
#pragma GCC unroll 14
        for (int t = 0; t < Tiles; ++t) acc[t] = zero();
        const float* x = point[0];
        for (int i = 0; i < kVectorFloats; ++i, ++x, weight += kVectorFloats) {
            const Vec w = in_register(load(weight));
#pragma GCC unroll 14
            for (int t = 0; t < Tiles; ++t) acc[t] += broadcast(x[t * kVectorFloats]) * w;
        }
#pragma GCC unroll 14
        for (int t = 0; t < Tiles; ++t) store(point[t], acc[t]);
    }
}

// Rows and columns of tiles of one vector of channels.
template <class E>
class VectorTiles {
  public:
    VectorTiles(const GroupedArgs& g, index_t channel)
        : g_(g),
          channel_(channel),
          across_((g.out_width + F2::out - 1) / F2::out),
          down_((g.out_row_end - g.out_row_begin + F2::out - 1) / F2::out),
          results_(GroupedElements<E>(g).results(0, channel, kVectorFloats)) {}

    index_t count() const { return across_ * down_; }

    void transform(index_t tile, BlockPoints& block, int t) const {
        const TileRows<E> rows(g_, row(tile), channel_);
        BlockColumns columns;
        rows.load_columns(column(tile) - g_.window.pad_left, columns);
#pragma GCC unroll 4
        for (int i = 0; i < F2::in; ++i) {
            Vec d[F2::in], v[F2::in];
#pragma GCC unroll 4
            for (int j = 0; j < F2::in; ++j) d[j] = columns[j][i];
            F2::input(d, 1, v);
#pragma GCC unroll 4
            for (int j = 0; j < F2::in; ++j) store(block.at[i * F2::in + j][t], v[j]);
        }
    }

    void finish(index_t tile, const BlockPoints& block, int t) const {
        Vec sums[F2::in][F2::out];
#pragma GCC unroll 4
        for (int i = 0; i < F2::in; ++i) {
            Vec m[F2::in];
#pragma GCC unroll 4
            for (int j = 0; j < F2::in; ++j) m[j] = load(block.at[i * F2::in + j][t]);
            F2::output(m, 1, sums[i]);
        }
        const index_t oy = row(tile), ox = column(tile);
#pragma GCC unroll 2
        for (int c = 0; c < F2::out; ++c) {
            Vec column[F2::in], y[F2::out];
#pragma GCC unroll 4
            for (int i = 0; i < F2::in; ++i) column[i] = sums[i][c];
            F2::output(column, 1, y);
#pragma GCC unroll 2
            for (int r = 0; r < F2::out; ++r)
                if (oy + r < g_.out_row_end && ox + c < g_.out_width) results_(y[r], (oy + r) * g_.out_width + ox + c);
        }
    }

  private:
    index_t row(index_t tile) const { return g_.out_row_begin + tile / across_ * F2::out; }
    index_t column(index_t tile) const { return tile % across_ * F2::out; }

    const GroupedArgs& g_;
    index_t channel_, across_, down_;
    typename GroupedElements<E>::Results results_;
};

template <class E>
void vector_f2(const GroupedArgs& g) {
    BlockPoints block;
    for (index_t c = g.channel_begin; c < g.channel_end; c += kVectorFloats) {
        const VectorTiles<E> tiles(g, c);
        const float* const weight = g.weight + c * kF2Products * kVectorFloats;
        for (index_t first = 0, left = tiles.count(); left > 0;) {
            // The 16 of a 7x7 image are two blocks of few.
            const bool halved = left > kTilesAtOnce && left <= 2 * kFewTiles;
            const int some = static_cast<int>(at_most(halved ? kFewTiles : kTilesAtOnce, left));
            const int multiplied = some > kFewTiles ? kTilesAtOnce : kFewTiles;
            for (int t = 0; t < some; ++t) tiles.transform(first + t, block, t);
            for (auto& point : block.at)
                for (int t = some; t < multiplied; ++t) store(point[t], zero());
            if (multiplied == kTilesAtOnce) {
                multiply_points<kTilesAtOnce>(weight, block);
            } else {
                multiply_points<kFewTiles>(weight, block);
            }
            for (int t = 0; t < some; ++t) tiles.finish(first + t, block, t);
            first += some;
            left -= some;
        }
        GroupedElements<E>(g).finish(g.out_row_begin * g.out_width, (g.out_row_end - g.out_row_begin) * g.out_width, c,
                                     kVectorFloats);
    }
}

// Kernels of 3x3, stride 1, no dilation.
template <class E>
void grouped_f2(const GroupedArgs& g) {
    with_group(g.group, [&]<int Group>() {
        if constexpr (Group == kVectorFloats) {
            vector_f2<E>(g);
        } else {
            grouped_f2_of<E, Group>(g);
        }
    });
}

}  // namespace
}  // namespace resfuse
