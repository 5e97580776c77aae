// The kinds of Winograd tiles as rows of the kernel table.
#pragma once

#include "kernels/gradients/weight_gradient.h"

namespace resfuse {
namespace {

template <class E, class F>
constexpr WinogradTransforms transforms_with_edges() {
    using A = typename F::Full;
    using B = typename F::Edge3;
    using C = typename F::Edge2;
    return {{{winograd_input<E, F, A, A>, winograd_input<E, F, A, B>, winograd_input<E, F, A, C>},
             {winograd_input<E, F, B, A>, winograd_input<E, F, B, B>, winograd_input<E, F, B, C>},
             {winograd_input<E, F, C, A>, winograd_input<E, F, C, B>, winograd_input<E, F, C, C>}},
            {{winograd_output<E, F, A, A>, winograd_output<E, F, A, B>, winograd_output<E, F, A, C>},
             {winograd_output<E, F, B, A>, winograd_output<E, F, B, B>, winograd_output<E, F, B, C>},
             {winograd_output<E, F, C, A>, winograd_output<E, F, C, B>, winograd_output<E, F, C, C>}}};
}

template <class F>
constexpr WinogradKernels winograd_kernels(int number) {
    using A = typename F::Full;
    using B = typename F::Edge3;
    using C = typename F::Edge2;
    WinogradKernels kernels{.number = number,
                            .has_edges = true,
                            .tile = A::out,
                            .points = A::in,
                            .operand_bytes = sizeof(float),
                            .stride = F::stride,
                            .weight_points = kWeightPoints<F>,
                            .chunk = F::stride == 1 ? 32 : 64,
                            .kind_points = {points_of_kinds<A, B, C>()},
                            .pack = pack_winograd<F>};
    if constexpr (F::stride == 2) {
        kernels.kind_points[1] = points_of_kinds<typename A::Odd, typename B::Odd, typename C::Odd>();
    } else {
        kernels.weight_gradient = winograd_weight_gradient<F>;
    }
    return kernels;
}

constexpr WinogradKernels f2x2_kernels() {
    return {.number = 0,
            .has_edges = false,
            .tile = F2::out,
            .points = F2::in,
            .operand_bytes = sizeof(float),
            .stride = 1,
            .weight_points = kWeightPoints<F2x2>,
            .chunk = 64,
            .kind_points = {{points_of<F2>()}},
            .pack = pack_winograd<F2x2>};
}

}  // namespace
}  // namespace resfuse
