// What the steps of all convolutions begin with: the layer, its sizes, its panels of weights.
#pragma once

#include "plan/algorithm.h"
#include "program/requantize.h"
#include "weights/panels.h"
#include "weights/weights.h"

namespace resfuse {

class ConvStep : public Step {
  protected:
    ConvStep(const StepContext& context, std::size_t index, const ConvAlgorithm& algorithm)
        : index_(index),
          algorithm_(algorithm),
          layer_(context.layers[index]),
          in_(context.buffer(layer_.input).extent),
          out_(context.buffer(layer_.output).extent),
          grid_(panel_grid(layer_, context.kernels())),
          int8_epilogue_(layer_.is_int8() ? int8_epilogue(context.program, layer_) : Int8Epilogue{}) {}

    index_t pixels() const { return out_.h * out_.w; }  // of an image of the output

    const float* weights(const Wave& wave) const {
        return static_cast<const float*>(wave.weights.packed(index_, algorithm_));
    }
    // From an output channel or a panel's first one on.
    const float* scale(const Wave& wave, index_t at = 0) const { return wave.weights.scale(index_) + at; }
    const float* bias(const Wave& wave, index_t at = 0) const { return wave.weights.bias(index_) + at; }

    ActivationArgs activation(const Wave& wave, index_t at = 0) const {
        return activation_by_element(layer_, wave.weights.slopes(index_, at));
    }

    // That read the input and write the output.
    const ElementKernels& reads(const Wave& wave) const { return wave.kernels_of(layer_.input); }
    const ElementKernels& writes(const Wave& wave) const { return wave.kernels_of(layer_.output); }

    const std::size_t index_;
    const ConvAlgorithm& algorithm_;
    const Layer& layer_;
    const Extent in_, out_;
    const PanelGrid grid_;
    const Int8Epilogue int8_epilogue_;  // of products of bytes
};

}  // namespace resfuse
