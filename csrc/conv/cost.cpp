#include "conv/cost.h"

#include <algorithm>

#include "machine/cpu.h"

namespace resfuse {

namespace {

// Shares of the peak rate of fused multiply-adds that the kernels reach; measured.
constexpr double kGemmEfficiency = 0.9;
// Of panels of one vector: loads are the bottleneck there, and register tiles of few rows wait for their sums.
constexpr double kOneVectorEfficiency = 0.65, kOneVectorOfFewRowsEfficiency = 0.45;
constexpr int kFewRows = 8;

}  // namespace

double cycles_of(double compute, double bytes, double bytes_per_cycle, double not_hidden) {
    const double stream = bytes <= static_cast<double>(cache_sizes().l2 / 2) ? 0.0 : bytes / bytes_per_cycle;
    return std::max(compute, stream) + not_hidden * std::min(compute, stream);
}

double product_cycles(double rows, index_t depth, index_t columns, const KernelTable& kernels) {
    const index_t vectors = ceil_div(columns, kernels.vector_floats);
    const double one = kernels.tile_rows < kFewRows ? kOneVectorOfFewRowsEfficiency : kOneVectorEfficiency;
    return rows * static_cast<double>(depth * vectors) /
           (multiply_adds_per_cycle(kernels.vector_floats) * (vectors == 1 ? one : kGemmEfficiency));
}

double streamed_bytes(const ConvAlgorithm& algorithm, const ConvCall& call) {
    return static_cast<double>(algorithm.packed_bytes(call.layer, call.kernels));
}

index_t rows_in_l2(index_t floats, double share) {
    return static_cast<index_t>(share * static_cast<double>(cache_sizes().l2 / sizeof(float))) / floats;
}

// 160 keep L1's room for what else passes; where fewer multiply-adds start in a cycle, that matters less than the
// stores do, which are slow there too.
index_t gemm_chunk(const KernelTable& kernels) {
    return multiply_adds_per_cycle(kernels.vector_floats) < 2.0 ? 256 : 160;
}

bool repeats_operands(int threads) {
    constexpr int kMost = 4;
    return threads > 1 && threads <= kMost;
}

}  // namespace resfuse
