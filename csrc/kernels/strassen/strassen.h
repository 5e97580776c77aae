// 1x1 convolutions with 7 products instead of 8: one level of the algorithm of V. Strassen, "Gaussian Elimination is
// not Optimal" (Numerische Mathematik 13, 1969).
//
// With x1 and x2 the pixels of a pair, y1 and y2 their outputs, both cut into halves of channels, and W cut likewise
// into W11 (first half of the outputs, of the first half of the inputs), W12 (second half of the outputs), W21 and W22:
//
//     M1 = (x1' + x2'')  (W11 + W22)      y1'  = M1 + M4 - M5 + M7
//     M2 = (x2' + x2'')   W11             y1'' = M3 + M5
//     M3 =  x1'          (W12 - W22)      y2'  = M2 + M4
//     M4 =  x2''         (W21 - W11)      y2'' = M1 - M2 + M3 + M6
//     M5 = (x1' + x1'')   W22
//     M6 = (x2' - x1')   (W11 + W12)      ' is the first half of the channels,
//     M7 = (x1'' - x2'') (W21 + W22)      '' the second
//
// Winograd's variant has 15 sums instead of 18, but those of W are taken when weights are packed, and its errors are
// larger. The sums on the left, the operands, are written once per block of pairs; the products are added to the sums
// that they are part of while they are in registers.
#pragma once

#include "kernels/gemm/gemm.h"
#include "kernels/strassen/args.h"

namespace resfuse {
namespace {

// In the order M1, M2, M5, M6, M7, M3, M4.
template <class E>
void strassen_operands(const StrassenOperandsArgs& g) {
    using Storage = typename E::Storage;
    const Storage *const first = static_cast<const Storage*>(g.first), *const second =
                                                                           static_cast<const Storage*>(g.second);
    const index_t half = g.half;
    for (index_t i = 0; i < g.pairs; ++i) {
        const Storage *const x1 = first + i * g.pair, *const x2 = second + i * g.pair;
        float* const to = g.to + i * g.pitch;
        for (index_t c = 0; c < half; c += kVectorFloats) {
            const Vec a = load(g.channel_scale + c), b = load(g.channel_scale + half + c);
            const Vec x1a = a * E::load(x1 + c), x1b = b * E::load(x1 + half + c);
            const Vec x2a = a * E::load(x2 + c), x2b = b * E::load(x2 + half + c);
            const Vec operands[] = {x1a + x2b, x2a + x2b, x1a + x1b, x2a - x1a, x1b - x2b, x1a, x2b};
#pragma GCC unroll 8
            for (int n = 0; n < kStrassenProducts; ++n) store(to + n * half + c, operands[n]);
        }
    }
}

// The products of one panel of each half of the output channels.
template <class E>
class StrassenPanels {
    using Storage = typename E::Storage;
    using Plain = Product<Form::plain, E>;
    using Sums = Product<Form::plain, Fp32>;

  public:
    StrassenPanels(const StrassenProductsArgs& s, index_t panel, float* sums) : s_(s), panel_(panel), sums_(sums) {
        args_.segment_offset = &kNoOffset;
        args_.segments = 1;
        args_.segment_length = s.half;
        args_.lda = s.pitch;
        args_.ldc = 2 * s.pixel;
        args_.residual = s.residual;
        args_.ldr = 2 * s.residual_pixel;
        args_.scale = s.scale;
        args_.bias = s.bias;
        args_.floor = s.floor;
    }

    void multiply() const {
        float *const y1a = sums(1), *const y1b = sums(2), *const y2a = sums(3), *const y2b = sums(4);
        const float *const m1 = operand(0), *const m2 = operand(1), *const m5 = operand(2), *const m6 = operand(3),
                           *const m7 = operand(4), *const m3 = operand(5), *const m4 = operand(6);
        Panel p = panel(0, m1, m2, y1a);
        p.other = y2b;
        multiply_and_fetch(p, 0);
        p = panel(1, m2, m3, y2a);
        p.other = y2b;
        p.sign = -1.0f;
        multiply_and_fetch(p, s_.half);
        p = panel(2, m3, m4, y1b);
        p.other = y2b;
        p.sign = 1.0f;
        multiply_panel<Sums, Tile::sums>(args_, p);
        p = panel(3, m4, m5, sums(0), results(1, 0));
        p.other = y1a;
        p.sign = 1.0f;
        p.more = y2a;
        multiply_and_finish(p);
        p = panel(4, m5, m6, sums(0), results(0, 1));
        p.other = y1a;
        p.sign = -1.0f;
        p.more = y1b;
        multiply_and_finish(p);
        p = panel(5, m6, m7, y2b, results(1, 1));
        p.accumulate = true;
        multiply_and_finish(p);
        p = panel(6, m7, m1, y1a, results(0, 0));
        p.accumulate = true;
        multiply_and_finish(p);
    }

  private:
    static constexpr index_t kNoOffset = 0;

    // Other types than fp32 share its register tiles, which leave sums in L1: one pass more over these.
    void multiply_and_finish(const Panel& p) const {
        if constexpr (std::is_same_v<E, Fp32>) {
            multiply_panel<Plain, Tile::results>(args_, p);
        } else {
            multiply_panel<Sums, Tile::sums>(args_, p);
            if (p.more)
                for (index_t i = 0; i < p.rows * kTileCols; i += kVectorFloats)
                    store(p.sums + i, load(p.sums + i) + load(p.more + i));
            finish_rows<Plain>(args_, p.to, p.sums, p.to.rows);
        }
    }

    const float* operand(index_t i) const { return s_.operands + i * s_.half; }

    float* sums(index_t i) const { return sums_ + i * s_.pairs * kTileCols; }

    Panel panel(index_t product, const float* a, const float* next_a, float* sums,
                const Results& to = {.cols = kTileCols}) const {
        return {.a = a,
                .next_a = next_a,
                .b = s_.weights + (panel_ * kStrassenProducts + product) * s_.half * kTileCols,
                .rows = s_.pairs,
                .chunk = s_.chunk,
                .sums = sums,
                .to = to};
    }

    // Of the first or second pixels, the first or second half of the output channels.
    Results results(index_t pixel, index_t half) const {
        const index_t column = panel_ * kTileCols + half * s_.right;
        return {.c = static_cast<Storage*>(s_.c) + pixel * s_.pixel + column,
                .residual = s_.residual ? static_cast<const Storage*>(s_.residual) + pixel * s_.residual_pixel + column
                                        : nullptr,
                .scale = s_.scale + column,
                .bias = s_.bias + column,
                .cols = kTileCols,
                .rows = s_.pairs - (s_.lone ? pixel : 0)};
    }

    // The pairs to come lie beyond L2 more often than not, and the operands are written without anything to compute
    // meanwhile: the last panels' products fetch them, from some channel on. (The first ones' would leave them the time
    // to be evicted again: 2 to 6 % slower.)
    void multiply_and_fetch(Panel& p, index_t channel) const {
        if (panel_ + 1 < s_.panels || s_.next == nullptr) return multiply_panel<Sums, Tile::sums>(args_, p);
        const Storage* const next = static_cast<const Storage*>(s_.next) + channel;
        p.fetch[0] = rows_ahead(next, s_.next_pair, 1);
        p.fetch[1] = rows_ahead(next + s_.next_pair / 2, s_.next_pair, 1);
        multiply_panel<Sums, Tile::sums_and_fetches>(args_, p);
    }

    const StrassenProductsArgs& s_;
    index_t panel_;
    float* sums_;
    GemmArgs args_{};
};

template <class E>
void strassen_products(const StrassenProductsArgs& s) {
    alignas(64) float sums[5 * kMostStrassenPairs * kTileCols];
    for (index_t panel = 0; panel < s.panels; ++panel) StrassenPanels<E>(s, panel, sums).multiply();
}

// The products mix the two halves of the output channels, and so do their errors: channels of small weights would get
// those of large ones. All columns of W are scaled to about the same magnitude first, and all rows, as sums of channels
// lose what of one is too small for the other, by powers of two.
inline void pack_strassen(const PackStrassenArgs& g) {
    const index_t second_c = g.half_c * g.stride_c, product = g.half_c * kTileCols;
    for (index_t c = 0; c < g.half_c; ++c) {
        const double first = g.channel_scale[c], second = g.channel_scale[g.half_c + c];
        for (index_t k = 0; k < kTileCols; ++k) {
            const float* const left = g.weight + (g.first_k + k) * g.stride_k + c * g.stride_c;
            const float* const right = left + g.half_k * g.stride_k;
            const double scale[2] = {1.0 / g.powers[0][k], 1.0 / g.powers[1][k]};
            const double w11 = scale[0] / first * static_cast<double>(left[0]);
            const double w21 = scale[0] / second * static_cast<double>(left[second_c]);
            const double w12 = scale[1] / first * static_cast<double>(right[0]);
            const double w22 = scale[1] / second * static_cast<double>(right[second_c]);
            float* const to = g.packed + c * kTileCols + k;
            to[0] = static_cast<float>(w11 + w22);
            to[product] = static_cast<float>(w11);
            to[2 * product] = static_cast<float>(w12 - w22);
            to[3 * product] = static_cast<float>(w21 - w11);
            to[4 * product] = static_cast<float>(w22);
            to[5 * product] = static_cast<float>(w11 + w12);
            to[6 * product] = static_cast<float>(w21 + w22);
        }
    }
}

}  // namespace
}  // namespace resfuse
