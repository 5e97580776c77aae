// Stems: kernels 7 taps wide with stride 2, few input channels. Winograd's F(2, 7) along rows.
//
// Even taps meet even pixels and odd taps odd ones: two convolutions of stride 1, F(2, 4) with five products for two
// outputs and F(2, 3) with four. Those are taken at four of the same five points, so that products of both add up:
// 9 instead of 14. Two neighbouring pixels of the interleaved band, an even and an odd one, are one step of both, and
// all is elementwise in their channels. Points p, -p, q, -q and infinity.
#pragma once

#include "kernels/winograd/args.h"
#include "kernels/winograd/winograd.h"

namespace resfuse {
namespace {

// What point z of the four must be divided by: the product of its distances to the others.
constexpr double point_distances(double z) {
    using P = H4Pairs;
    const bool first = z * z == P::p2;
    return first ? 2 * z * (P::p2 - P::q2) : 2 * z * (P::q2 - P::p2);
}

constexpr double kRowPoints[kRowFrequencies - 1] = {H4Pairs::p, -H4Pairs::p, H4Pairs::q, -H4Pairs::q};

inline void winograd_row_input(const WinogradRowInputArgs& g) {
    const index_t step = 2 * g.channels;
    for (index_t i = 0; i < g.pairs; ++i)
        for (index_t c = 0; c < step; c += kVectorFloats) {
            const float* const at = g.band + 2 * i * step + c;
            Vec d[kRowFrequencies], v[4];
#pragma GCC unroll 5
            for (int t = 0; t < kRowFrequencies; ++t) d[t] = load(at + t * step);
            H4Edge3::input(d, 1, v);
#pragma GCC unroll 4
            for (int f = 0; f < 4; ++f) store(g.v + f * g.frequency + i * g.pitch + c, v[f]);
            if (c < g.channels) store(g.infinity + i * g.infinity_pitch + c, H4Pairs::infinity(d[0], d[2], d[4]));
        }
}

template <class E>
void winograd_row_output(const WinogradRowOutputArgs& g) {
    const auto* const residual = static_cast<const typename E::Storage*>(g.residual);
    auto* const y = static_cast<typename E::Storage*>(g.y);
    const Vec floor = broadcast(g.floor);
    for (index_t k = 0; k < g.cols; k += kVectorFloats) {
        const index_t lanes = at_most(kVectorFloats, g.cols - k);
        const Vec scale = load(g.scale + k), bias = load(g.bias + k);
        const auto finish = [&](Vec v, index_t x) {
            v = v * scale + bias;
            if (residual) v += E::load_first(residual + x * g.residual_pixel + k, lanes);
            E::store_first(y + x * g.pixel + k, clamp_below(v, floor), lanes);
        };
        const float* from = g.m + k;
        for (index_t x = 0; x < g.width; x += 2, from += kTileCols) {
            Vec m[kRowFrequencies];
#pragma GCC unroll 5
            for (int f = 0; f < kRowFrequencies; ++f) m[f] = load(from + f * g.frequency);
            const auto [even_p, odd_p, even_q, odd_q] = H4Pairs::output(m, 1);
            finish(even_p + even_q, x);
            if (x + 1 < g.width) finish(constant(H4Pairs::p) * odd_p + constant(H4Pairs::q) * odd_q + m[4], x + 1);
        }
    }
}

// [kRowFrequencies][kernel_h][even channels, odd channels][tile_cols], the last frequency without odd ones.
inline void pack_winograd_rows(const PackPanelArgs& g) {
    float* to = g.packed;
    for (int f = 0; f < kRowFrequencies; ++f)
        for (index_t r = 0; r < g.kernel_h; ++r)
            for (int phase = 0; phase < (f < 4 ? 2 : 1); ++phase)
                for (index_t c = 0; c < g.channels; ++c, to += kTileCols)
                    for (index_t k = 0; k < kTileCols; ++k) {
                        to[k] = 0.0f;
                        if (k >= g.cols) continue;
                        const float* const w =
                            g.weight + (g.first_k + k) * g.stride_k + c * g.stride_c + r * g.stride_h;
                        if (f == 4) {
                            to[k] = w[6 * g.stride_w];
                            continue;
                        }
                        double sum = 0, power = 1 / point_distances(kRowPoints[f]);
                        for (int s = phase; s < 7; s += 2, power *= kRowPoints[f]) sum += power * w[s * g.stride_w];
                        to[k] = static_cast<float>(sum);
                    }
}

}  // namespace
}  // namespace resfuse
