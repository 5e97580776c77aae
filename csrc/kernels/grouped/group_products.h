// What the convolutions in groups of few channels have in common.
//
// A vector of output channels holds whole groups, and lane l of it needs all input channels of its group, one after the
// other: the lanes of the input vector are exchanged within groups, lane l with lane l ^ i for i below the group's
// channels, a power of two. Weights are packed in the order that this gives.
#pragma once

#include <type_traits>

#include "kernels/activation/activation.h"
#include "kernels/grouped/args.h"
#include "kernels/simd/element.h"

namespace resfuse {
namespace {

// Lane l of the result is lane l ^ Distance.
template <int Distance, std::size_t... Lane>
inline Vec exchange(Vec v, std::index_sequence<Lane...>) {
    return __builtin_shufflevector(v, v, (static_cast<int>(Lane) ^ Distance)...);
}

template <int Pixels, std::size_t... Near>
[[gnu::always_inline]] inline void add_within_four(const float* weight, const Vec* x, Vec* acc,
                                                   std::index_sequence<Near...>) {
    constexpr auto lanes = std::make_index_sequence<kVectorFloats>{};
    const auto add = [&]<int Distance>() {
        const Vec w = in_register(load(weight + Distance * kVectorFloats));
#pragma GCC unroll 14
        for (int p = 0; p < Pixels; ++p) acc[p] += w * exchange<Distance>(x[p], lanes);
    };
    (add.template operator()<static_cast<int>(Near)>(), ...);
}

template <int Pixels, int Distance>
[[gnu::always_inline]] inline void add_exchanged_fours(const float* weight, const Vec* x, Vec* acc) {
    Vec fours[Pixels];
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) fours[p] = exchange<Distance>(x[p], std::make_index_sequence<kVectorFloats>{});
    add_within_four<Pixels>(weight + Distance * kVectorFloats, fours, acc, std::make_index_sequence<4>{});
}

// Of each of some pixels, the sum over the input channels of its groups. Exchanges by multiples of 4 come first, those
// within four lanes behind them, so that each is one instruction without indices from memory.
template <int Group, int Pixels>
[[gnu::always_inline]] inline void add_group_products(const float* weight, const Vec* x, Vec* acc) {
    constexpr int kFour = Group < 4 ? Group : 4;
    add_within_four<Pixels>(weight, x, acc, std::make_index_sequence<kFour>{});
    [&]<std::size_t... Far>(std::index_sequence<Far...>) {
        (add_exchanged_fours<Pixels, 4 * static_cast<int>(Far + 1)>(weight, x, acc), ...);
    }(std::make_index_sequence<Group / kFour - 1>{});
}

// Calls f with the channels of a group as a constant: a divisor of a vector.
template <class F>
void with_group(index_t group, F f) {
    if (group == kVectorFloats) return f.template operator()<kVectorFloats>();
    if (group == 1) return f.template operator()<1>();
    if (group == 2) return f.template operator()<2>();
    if constexpr (kVectorFloats > 4)
        if (group == 4) return f.template operator()<4>();
    if constexpr (kVectorFloats > 8)
        if (group == 8) return f.template operator()<8>();
}

// act(v * scale + bias + residual) of one vector of channels.
template <class E>
struct GroupEpilogue {
    Vec scale, bias, floor;
    ActivationArgs activation;
    index_t channel, lanes;

    GroupEpilogue(const GroupedArgs& g, index_t channel_, index_t lanes_)
        : scale(load_first(g.scale + channel_, lanes_)),
          bias(load_first(g.bias + channel_, lanes_)),
          floor(broadcast(g.floor)),
          activation(g.activation),
          channel(channel_),
          lanes(lanes_) {}

    // All lanes, without a residual.
    [[gnu::always_inline]] inline void finish_whole(Vec v, typename E::Storage* y) const {
        v = clamp_below(v * scale + bias, floor);
        if constexpr (!std::is_same_v<E, Fp32>) v = activated(activation, v, channel);
        E::store(y, v);
    }
    // `residual`: of this pixel, or null.
    [[gnu::always_inline]] inline void finish(Vec v, const typename E::Storage* residual,
                                              typename E::Storage* y) const {
        v = v * scale + bias;
        if (residual) v += E::load_first(residual, lanes);
        v = clamp_below(v, floor);
        if constexpr (!std::is_same_v<E, Fp32>) v = activated(activation, v, channel);
        E::store_first(y, v, lanes);
    }
};

}  // namespace
}  // namespace resfuse
