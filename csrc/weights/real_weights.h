// Weights as float32, whatever they are stored as.
#pragma once

#include <optional>
#include <vector>

#include "program/program.h"
#include "program/weight_source.h"

namespace resfuse {

// Lives as long as a layer is packed: of weights that are stored otherwise no copy stays.
class RealWeights {
  public:
    RealWeights(const Layer& layer, const WeightSource& source, int threads);
    const WeightSource& source() const { return made_ ? *made_ : source_; }

  private:
    const WeightSource& source_;
    std::vector<float> values_;
    std::optional<WeightSource> made_;
};

}  // namespace resfuse
