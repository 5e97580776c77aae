// A program's specification: the text that Python and files speak (python/resfuse/engine/spec.py), and where in a list
// of parameters each layer finds its own.
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "program/program.h"

namespace resfuse {

using Place = std::optional<std::size_t>;  // in the list of parameters

struct BatchNormPlaces {
    Place weight, bias;
    std::size_t running_mean, running_var;
    double eps;
};

struct LayerPlaces {
    Place weight, bias;
    Place weight_steps, weight_zeros, weight_lost, input_means;  // of quantised weights
    Place channel_scale;
    Place slopes;  // of prelu
    std::optional<BatchNormPlaces> batch_norm;
    double factor = 1.0;
};

struct Spec {
    std::shared_ptr<Program> program;
    std::vector<LayerPlaces> places;  // per layer
    std::vector<int> ranks;           // per output: 4, or 2 for one of a single pixel
    std::size_t parameters = 0;       // how many the layers read
};

// Throws std::invalid_argument for text that is no specification: what no JSON is, unknown kinds, names or fields,
// values of other types, buffers and lengths that cannot be.
Spec read_spec(std::string_view text, Isa isa, DType type);

}  // namespace resfuse
