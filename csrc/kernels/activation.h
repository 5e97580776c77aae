// Activations of a head, element by element; ReLU is a clamp in the epilogues and never comes here.
#pragma once

#include "kernels/simd.h"

namespace resfuse {
namespace {

void activate(Activation kind, float* p, index_t n) {
    if (kind == Activation::tanh) {
        for (index_t i = 0; i < n; ++i) p[i] = __builtin_tanhf(p[i]);
    } else if (kind == Activation::sigmoid) {
        for (index_t i = 0; i < n; ++i) p[i] = 1.0f / (1.0f + __builtin_expf(-p[i]));
    }
}

}  // namespace
}  // namespace resfuse
