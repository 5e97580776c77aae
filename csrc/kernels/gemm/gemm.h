// Every matrix product: direct and 1x1 convolutions, linear layers, and the register tile that Winograd frequencies
// share with them.
//
// The reduction goes in chunks. A chunk of one panel of B stays in L1 while some register tiles of rows pass by, so B
// is read once per block of rows from wherever it lies, and the accumulators of each chunk are added up in L1 as well.
// So each output element is a sum of short chains of fused multiply-adds in a fixed order, whatever the tile's height:
// results do not depend on how rows are split over tiles, blocks or threads, and the rounding error stays small, where
// that of one long chain would grow with the square root of its length (Higham, "Accuracy and Stability of Numerical
// Algorithms", section 4.2).
#pragma once

#include <type_traits>

#include "kernels/activation/activation.h"
#include "kernels/gemm/args.h"
#if defined(RESFUSE_NEON)
#include "kernels/gemm/lane_tile.h"
#else
#include "kernels/gemm/broadcast_tile.h"
#endif
#include "kernels/gemm/paired_tile.h"

namespace resfuse {
namespace {

constexpr index_t kBlockTiles = 8;  // of rows, whose sums stay in L1

// How a product is computed: term by term, or in pairs of terms (paired_tile.h).
enum class Form { plain, paired };
// And the element type of what is written and added.
template <Form F, class E>
struct Product {
    static constexpr Form form = F;
    using Element = E;
    using Storage = typename E::Storage;
};
template <Form F>
constexpr int kRowsOf = F == Form::paired ? kPairedTileRows : kTileRows;

// Rows of a matrix of weights that reduces `depth` steps.
template <Form F>
constexpr index_t matrix_rows(index_t depth) {
    return F == Form::plain ? depth : depth + (depth + paired_part(depth) - 1) / paired_part(depth);
}

// Register tiles of about the same height: 20 rows are 10 + 10, not 14 + 6.
template <Form F>
inline index_t even_tiles(index_t rows) {
    return (rows + kRowsOf<F> - 1) / kRowsOf<F>;
}

// What a tile of a product does with its sums, and which rows it fetches besides the next tile's of A.
enum class Tile {
    sums,              // adds them up
    sums_and_fetches,  // and fetches rows that a later product wants
    results            // the epilogue; fetches the rows that it writes and adds
};

// Sums so far, kTileCols floats a row, and those of one more chunk.
template <int Rows, int Vectors>
[[gnu::always_inline]] inline void add_sums(const float* sums, Accumulators<Rows, Vectors>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) acc[i][j] += load(sums + i * kTileCols + j * kVectorFloats);
}

template <int Rows, int Vectors>
[[gnu::always_inline]] inline void store_sums(float* sums, const Accumulators<Rows, Vectors>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) store(sums + i * kTileCols + j * kVectorFloats, acc[i][j]);
}

// Where a tile's results go.
struct Results {
    void* c;
    const void* residual;
    const float* scale;
    const float* bias;
    index_t cols;                      // valid columns
    index_t rows;                      // and rows
    index_t column = 0;                // the first one's number
    const float* row_scale = nullptr;  // of the paired form: of the first row, lda floats apart
};

// A part of row i as it would be if the rows of A had not been scaled.
template <Form F>
[[gnu::always_inline]] inline Vec scaled_row(const GemmArgs& g, const Results& to, index_t i, Vec v) {
    if constexpr (F == Form::paired) return times_broadcast(to.row_scale + i * g.lda, v);
    return v;
}

// Values that are rounded when they are stored are activated before.
template <class P>
[[gnu::always_inline]] inline Vec finished(const GemmArgs& g, Vec v, index_t column) {
    if constexpr (!std::is_same_v<typename P::Element, Fp32>)
        if (g.activation.kind != Activation::none) return activated(g.activation, v, column);
    return v;
}

// The epilogue of a tile, one vector of columns after the other so that its scale and bias stay in registers.
template <class P, bool Residual, int Rows, int Vectors>
[[gnu::always_inline]] inline void finish_tile(const GemmArgs& g, const Results& to,
                                               const Accumulators<Rows, Vectors>& acc) {
    using E = typename P::Element;
    auto* const c = static_cast<typename P::Storage*>(to.c);
    const auto* const residual = static_cast<const typename P::Storage*>(to.residual);
    const Vec floor = broadcast(g.floor);
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
        const index_t column = j * kVectorFloats;
        const index_t n = to.cols - column;
        if (n <= 0) return;
        const Vec scale = g.scale ? load(to.scale + column) : broadcast(1.0f);
        const Vec bias = g.bias ? load(to.bias + column) : zero();
        if (n >= kVectorFloats) {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                Vec v = scaled_row<P::form>(g, to, i, acc[i][j]) * scale + bias;
                if constexpr (Residual) v += E::load(residual + i * g.ldr + column);
                E::store(c + i * g.ldc + column, finished<P>(g, clamp_below(v, floor), to.column + column));
            }
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                Vec v = scaled_row<P::form>(g, to, i, acc[i][j]) * scale + bias;
                if constexpr (Residual) v += E::load_first(residual + i * g.ldr + column, n);
                E::store_first(c + i * g.ldc + column, finished<P>(g, clamp_below(v, floor), to.column + column), n);
            }
        }
    }
}

// To later rows.
template <class P>
[[gnu::always_inline]] inline void move_rows(const GemmArgs& g, index_t rows, index_t lda, Results& to) {
    using Storage = typename P::Storage;
    to.c = static_cast<Storage*>(to.c) + rows * g.ldc;
    if (g.residual) to.residual = static_cast<const Storage*>(to.residual) + rows * g.ldr;
    if constexpr (P::form == Form::paired) to.row_scale += rows * lda;
}

// The epilogue of the first rows of a tile, whose sums lie in memory.
template <class P>
[[gnu::noinline]] void finish_rows(const GemmArgs& g, Results to, const float* sums, index_t rows) {
    for (; rows > 0; --rows, sums += kTileCols, move_rows<P>(g, 1, g.lda, to)) {
        Accumulators<1, kTileVectors> acc;
        for (int j = 0; j < kTileVectors; ++j) acc[0][j] = load(sums + j * kVectorFloats);
        if (g.residual) {
            finish_tile<P, true, 1, kTileVectors>(g, to, acc);
        } else {
            finish_tile<P, false, 1, kTileVectors>(g, to, acc);
        }
    }
}

// One panel of B times some rows. Its product may be part of several sums (strassen.h); all sums have kTileCols floats
// a row.
struct Panel {
    const float* a;
    const float* next_a;  // of the panel that follows
    const float* b;
    index_t rows;
    index_t chunk;            // steps, at most
    bool accumulate = false;  // to sums that are there
    float* sums;              // of chunks; where all results go if there is no epilogue
    Results to = {};
    RowsAhead fetch[2] = {};      // by Tile::sums_and_fetches
    float* other = nullptr;       // sums that get the product too, times this sign
    float sign = 0.0f;            // 0: they are not there yet
    const float* more = nullptr;  // sums that the epilogue adds
};

// A part of the reduction: some whole segments or a part of one.
struct Chunk {
    const float* next_a;  // of the chunk that follows, such that the same offsets apply
    const index_t* offsets;
    index_t segments, steps;  // steps of each segment
    const float* b;
    index_t correction = 0;  // of the paired form
    bool first, last = false;
};

// Where the next tile of a chunk lies. Its own copies of lda and b_step spare each tile's first loads the detour
// through memory that the stores before them may have changed: 2 to 4 % of the products of few rows.
struct Walk {
    const float* a;
    index_t lda;
    const float* ahead_b;
    index_t b_step;
    float* sums;
    index_t row, left;
};

template <int Rows, int Vectors>
[[gnu::always_inline]] inline void add_to_other(const Panel& panel, index_t row,
                                                const Accumulators<Rows, Vectors>& acc) {
    float* const other = panel.other + row * kTileCols;
    if (panel.sign == 0.0f) return store_sums<Rows, Vectors>(other, acc);
    const Vec sign = broadcast(panel.sign);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) {
            float* const at = other + i * kTileCols + j * kVectorFloats;
            store(at, load(at) + sign * acc[i][j]);
        }
}

// acc = the rows of a tile times the columns of a chunk.
template <Form F, Tile Kind, int Rows, int Vectors>
[[gnu::always_inline]] inline void multiply_tile(const Chunk& chunk, const Walk& at, const GemmAhead& ahead,
                                                 Accumulators<Rows, Vectors>& acc) {
    if constexpr (F == Form::paired) {
        multiply_paired<Kind == Tile::results, Rows, Vectors>(at.a, at.lda, chunk.correction, chunk.steps, chunk.b,
                                                              ahead, acc);
    } else {
        multiply<Kind != Tile::sums, Rows, Vectors>(at.a, at.lda, chunk.offsets, chunk.segments, chunk.steps, chunk.b,
                                                    ahead, acc);
    }
}

template <class P, Tile Kind, int Rows, int Vectors>
[[gnu::always_inline]] inline void gemm_tile(const GemmArgs& g, const Panel& panel, const Chunk& chunk, const Walk& at,
                                             GemmAhead ahead) {
    Accumulators<Rows, Vectors> acc;
    if constexpr (Kind == Tile::results) {
        Results to = panel.to;
        move_rows<P>(g, at.row, at.lda, to);
        ahead.more[0] = ahead.more[1] = rows_ahead(static_cast<const typename P::Storage*>(to.c), g.ldc);
        if (g.residual) ahead.more[1] = rows_ahead(static_cast<const typename P::Storage*>(to.residual), g.ldr);
        multiply_tile<P::form, Kind, Rows, Vectors>(chunk, at, ahead, acc);
        if (!chunk.first) add_sums<Rows, Vectors>(at.sums, acc);
        if (panel.other) add_to_other<Rows, Vectors>(panel, at.row, acc);
        if (panel.more) add_sums<Rows, Vectors>(panel.more + at.row * kTileCols, acc);
        if (at.row + Rows > to.rows) {
            store_sums<Rows, Vectors>(at.sums, acc);
            finish_rows<P>(g, to, at.sums, to.rows - at.row);
        } else if (g.residual) {
            finish_tile<P, true, Rows, Vectors>(g, to, acc);
        } else {
            finish_tile<P, false, Rows, Vectors>(g, to, acc);
        }
    } else {
        if constexpr (Kind == Tile::sums_and_fetches)
            for (int m = 0; m < 2; ++m) {
                ahead.more[m] = panel.fetch[m];
                ahead.more[m].at += at.row * panel.fetch[m].pitch + (chunk.b - panel.b) / kTileCols;
            }
        multiply_tile<P::form, Kind, Rows, Vectors>(chunk, at, ahead, acc);
        if (!chunk.first) add_sums<Rows, Vectors>(at.sums, acc);
        store_sums<Rows, Vectors>(at.sums, acc);
        if (panel.other && chunk.last) add_to_other<Rows, Vectors>(panel, at.row, acc);
    }
}

template <class P, Tile Kind, int Rows, int Vectors>
[[gnu::always_inline]] inline void gemm_tiles(const GemmArgs& g, const Panel& panel, const Chunk& chunk, index_t tiles,
                                              Walk& at) {
    for (; tiles > 0; --tiles, --at.left) {
        const float* const next = at.a + Rows * at.lda;
        gemm_tile<P, Kind, Rows, Vectors>(
            g, panel, chunk, at, {.a = at.left > 1 ? next : chunk.next_a, .b = at.ahead_b, .b_step = at.b_step});
        at.a = next;
        at.ahead_b += at.b_step * chunk.segments * chunk.steps;
        at.sums += Rows * kTileCols;
        at.row += Rows;
    }
}

// The first `longer` tiles have Rows + 1 rows; `at` is at the first.
template <class P, Tile Kind, int Rows, int Vectors>
[[gnu::always_inline]] inline void gemm_chunk(const GemmArgs& g, const Panel& panel, const Chunk& chunk, index_t longer,
                                              Walk at) {
    if constexpr (Rows < kRowsOf<P::form>) gemm_tiles<P, Kind, Rows + 1, Vectors>(g, panel, chunk, longer, at);
    gemm_tiles<P, Kind, Rows, Vectors>(g, panel, chunk, at.left, at);
}

// The first chunks write sums, the last one as well unless there is an epilogue.
template <class P, Tile Kind, int Rows, int Vectors>
[[gnu::noinline]] void gemm_panel(const GemmArgs& g, const Panel& panel) {
    // Whole segments, or even parts of one.
    constexpr bool paired = P::form == Form::paired;
    const index_t part = paired ? paired_part(g.segment_length) : even_part(g.segment_length, panel.chunk, kTwoLines);
    const index_t segments_each = paired || part < g.segment_length ? 1 : panel.chunk / g.segment_length;
    const float* b = panel.b;
    const index_t tiles = even_tiles<P::form>(panel.rows), longer = panel.rows - tiles * Rows;
    const index_t lda = g.lda;
    const index_t b_step = (kTileCols + tiles - 1) / tiles;  // all tiles together fetch a chunk
    for (index_t segment = 0, step = 0, number = 0; segment < g.segments; ++number) {
        const index_t segments = at_most(segments_each, g.segments - segment);
        const index_t steps = at_most(part, g.segment_length - step);
        const Walk at{.a = panel.a + step,
                      .lda = lda,
                      .ahead_b = b + kAheadSteps * kTileCols,
                      .b_step = b_step,
                      .sums = panel.sums,
                      .row = 0,
                      .left = tiles};
        Chunk chunk{.next_a = panel.next_a,
                    .offsets = g.segment_offset + segment,
                    .segments = segments,
                    .steps = steps,
                    .b = b,
                    .correction = g.segment_length - step + number,
                    .first = segment == 0 && step == 0 && !panel.accumulate};
        b += (segments * steps + (paired ? 1 : 0)) * kTileCols;
        step += steps;
        if (step == g.segment_length) {
            segment += segments;
            step = 0;
        }
        chunk.last = segment == g.segments;
        if (!chunk.last) chunk.next_a = panel.a + g.segment_offset[segment] + step - *chunk.offsets;
        if (Kind != Tile::results || chunk.last) {
            gemm_chunk<P, Kind, Rows, Vectors>(g, panel, chunk, longer, at);
        } else {
            gemm_chunk<P, Tile::sums, Rows, Vectors>(g, panel, chunk, longer, at);
        }
    }
}

// `rows` of the shorter tiles.
template <class P, Tile Kind, int Rows = kRowsOf<P::form>>
inline void gemm_panel_of(index_t rows, const GemmArgs& g, const Panel& panel) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return gemm_panel_of<P, Kind, Rows - 1>(rows, g, panel);
    }
    if (panel.to.cols > kVectorFloats) {
        gemm_panel<P, Kind, Rows, kTileVectors>(g, panel);
    } else {
        gemm_panel<P, Kind, Rows, 1>(g, panel);
    }
}

template <class P, Tile Kind>
inline void multiply_panel(const GemmArgs& g, const Panel& panel) {
    gemm_panel_of<P, Kind>(panel.rows / even_tiles<P::form>(panel.rows), g, panel);
}

// Rows [begin, end), few enough for the sums in L1.
template <class P>
inline void gemm_block(const GemmArgs& g, index_t begin, index_t end) {
    using Storage = typename P::Storage;
    alignas(64) float sums[kBlockTiles * kRowsOf<P::form> * kTileCols];
    const index_t reduction = g.segments * g.segment_length;
    const index_t panels = (g.cols + kTileCols - 1) / kTileCols;
    const float* const a = static_cast<const float*>(g.a) + begin * g.lda;
    for (index_t p = 0; p < panels; ++p) {
        const index_t column = p * kTileCols;
        const Panel panel{
            .a = a,
            .next_a = a,
            .b = static_cast<const float*>(g.b) + p * matrix_rows<P::form>(reduction) * kTileCols,
            .rows = end - begin,
            .chunk = g.chunk,
            .sums = sums,
            .to = {.c = static_cast<Storage*>(g.c) + begin * g.ldc + column,
                   .residual = g.residual ? static_cast<const Storage*>(g.residual) + begin * g.ldr + column : nullptr,
                   .scale = g.scale + column,
                   .bias = g.bias + column,
                   .cols = p + 1 == panels ? g.cols - column : kTileCols,
                   .rows = end - begin,
                   .column = column,
                   .row_scale = P::form == Form::paired ? a + paired_pitch(reduction) - 1 : nullptr}};
        if constexpr (std::is_same_v<typename P::Element, Fp32>) {
            multiply_panel<P, Tile::results>(g, panel);
            if (g.activation.kind != Activation::none)
                activate<Fp32>({from_channel(g.activation, column), panel.to.c, panel.rows, g.ldc, panel.to.cols});
        } else {
            // Other types share the register tiles that leave sums in L1: one pass more over these.
            multiply_panel<Product<P::form, Fp32>, Tile::sums>(g, panel);
            finish_rows<P>(g, panel.to, sums, panel.rows);
        }
    }
}

template <class P>
void gemm(const GemmArgs& g) {
    constexpr index_t block = kBlockTiles * kRowsOf<P::form>;
    const index_t blocks = (g.rows + block - 1) / block;
    for (index_t i = 0; i < blocks; ++i) gemm_block<P>(g, g.rows * i / blocks, g.rows * (i + 1) / blocks);
}

}  // namespace
}  // namespace resfuse
