// How the outputs of layers that compute with bytes come about: in which units sums are, and what becomes of them.
#pragma once

#include "program/program.h"

namespace resfuse {

// Whether what makes outputs of sums of bytes applies the activation too.
inline bool activates_sums(const Layer& layer) {
    return is_by_element(layer.activation) && layer.activation != Activation::prelu;
}

// So many units stand for one: outputs' steps, where these are what a layer computes in, else 1: activations that are
// functions of real numbers come first.
inline double int8_units(const Program& program, const Layer& layer) {
    const bool steps = layer.type == DType::u8 && !is_by_element(layer.activation);
    return steps ? 1.0 / static_cast<double>(program.range(layer.output).scale) : 1.0;
}

// By which the residual's bytes or floats become these units.
inline float residual_factor(const Program& program, const Layer& layer) {
    const bool bytes = program.type(layer.residual) == DType::u8;
    const double real = bytes ? static_cast<double>(program.range(layer.residual).scale) : 1.0;
    return static_cast<float>(real * int8_units(program, layer));
}

inline OutputArgs output_args(const Program& program, const Layer& layer) {
    OutputArgs output{.type = layer.type, .low = -__builtin_inff(), .high = __builtin_inff()};
    if (activates_sums(layer)) output.activation = {layer.activation, layer.slope, nullptr, layer.upper};
    if (layer.type == DType::u8) {
        const Quantization& range = program.range(layer.output);
        output.low = static_cast<float>(-range.zero_point);
        output.high = static_cast<float>(255 - range.zero_point);
        output.zero_point = range.zero_point;
        if (is_by_element(layer.activation)) output.steps = 1.0f / range.scale;
    }
    if (layer.activation == Activation::relu) output.low = 0.0f;
    return output;
}

// Of a convolution of bytes.
inline Int8Epilogue int8_epilogue(const Program& program, const Layer& layer) {
    Int8Epilogue epilogue{.output = output_args(program, layer)};
    if (layer.residual >= 0) {
        epilogue.residual_type = program.type(layer.residual);
        epilogue.residual_factor = residual_factor(program, layer);
    }
    return epilogue;
}

}  // namespace resfuse
