// A program's weights from a list of tensors.
#pragma once

#include <span>

#include "program/stored_tensor.h"
#include "spec/spec.h"
#include "weights/weights.h"

namespace resfuse {

// Hands `weights` what each layer reads, batch norms folded in fp64. Plain float32 weights are not copied, so all
// tensors must stay where they are. Throws std::invalid_argument for tensors of other shapes or types than the layers
// take.
void set_parameters(WeightSet& weights, const Spec& spec, std::span<const StoredTensor> tensors);

}  // namespace resfuse
