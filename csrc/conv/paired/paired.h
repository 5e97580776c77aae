// Convolutions by products in pairs of terms (kernels/gemm/paired_tile.h).
#pragma once

#include "conv/balanced/balanced_weights.h"

namespace resfuse {

const BalancedAlgorithm& paired();

// The pixels whose rows a task keeps: of `total` for some threads.
index_t paired_block(const Layer& layer, index_t total, int threads, const KernelTable& kernels);

std::unique_ptr<Step> make_paired_step(const StepContext& context, std::size_t layer);

}  // namespace resfuse
