// 1x1 convolutions by one level of Strassen's algorithm (kernels/strassen/strassen.h).
#pragma once

#include "conv/balanced/balanced_weights.h"

namespace resfuse {

const BalancedAlgorithm& strassen();

constexpr index_t kFewestStrassenTiles = 2;  // register tiles of a block, so that weights do not stream too often

// Pairs of pixels whose operands a task keeps, at most: a whole number of register tiles.
index_t strassen_block(const Layer& layer, const KernelTable& kernels);

std::unique_ptr<Step> make_strassen_step(const StepContext& context, std::size_t layer);

}  // namespace resfuse
