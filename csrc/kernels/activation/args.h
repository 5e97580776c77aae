// Activations.
#pragma once

#include "kernels/types.h"

namespace resfuse {

// softmax runs over the n numbers it is given, the others element by element.
enum class Activation : int {
    none,
    relu,
    tanh,
    sigmoid,
    softmax,
    silu,
    gelu,
    leaky_relu,
    relu6,
    hardsigmoid,
    hardswish,
    mish,
    elu,
    prelu,
    clamp,
    hardtanh  // likewise; torch's gradient differs
};

struct ActivationArgs {
    Activation kind;
    float slope;                    // of leaky_relu; elu's alpha; clamp's lower bound
    const float* slopes = nullptr;  // of prelu: by channel, with a vector's room behind the last one
    float upper = 0.0f;             // bound of clamp
};

// In place, of some channels of pixels `pixel` elements apart.
struct ActivateArgs {
    ActivationArgs activation;
    void* data;
    index_t pixels, pixel, channels;
};

}  // namespace resfuse
