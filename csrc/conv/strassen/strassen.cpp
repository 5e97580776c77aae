#include "conv/strassen/strassen.h"

#include <algorithm>

#include "conv/balanced/balance.h"
#include "conv/cost.h"
#include "machine/dispatch.h"
#include "machine/threads.h"
#include "weights/panels.h"

namespace resfuse {

namespace {

// Cycles a vector of a pixel's channels: its operands, where they stay in L2, where they are so many that they do not,
// and where pixels are so few that threads share out the weights and read each other's operands; and its sums. Measured
// on Emerald Rapids.
constexpr double kOperandCycles = 12.0, kFarOperandCycles = 50.0, kSharedOperandCycles = 40.0;
constexpr double kSumCycles = 4.0;
constexpr double kFewTiles = 8.0;  // of pairs, which are few then

// The pairs of pixels whose operands are a share of L2.
index_t pairs_in_l2(const Layer& layer, double share) {
    return rows_in_l2(kStrassenProducts * (layer.in_channels / 2), share);
}

class Strassen final : public BalancedAlgorithm {
  public:
    const char* name() const override { return "strassen"; }
    std::vector<std::string_view> requests() const override { return {"strassen"}; }

    // The halves of its channels must be whole vectors and panels. Where there are products in pairs, they are faster:
    // 4 products for 6 terms instead of 7 for 8.
    bool applies(const Layer& layer, Extent, const KernelTable& kernels) const override {
        return layer.is_one_by_one() && kernels_of(kernels, layer.input_type).strassen_operands != nullptr &&
               kernels_of(kernels, layer.type).strassen_products != nullptr &&
               layer.in_channels % (2 * kernels.vector_floats) == 0 &&
               layer.out_channels % (2 * kernels.tile_cols) == 0 &&
               (kernels.paired_tile_rows == 0 || !is_automatic(layer.algorithm));
    }

    double cycles(const ConvCall& call) const override {
        const Layer& layer = call.layer;
        const KernelTable& kernels = call.kernels;
        const double pairs = static_cast<double>(call.batch * ceil_div(call.out.h * call.out.w, 2));
        const double products = static_cast<double>(kStrassenProducts) *
                                product_cycles(pairs, layer.in_channels / 2, layer.out_channels / 2, kernels);
        const bool near = kFewestStrassenTiles * kernels.tile_rows <= pairs_in_l2(layer, 0.6);
        // Of strided ones direct products copy every pixel.
        const bool shared = layer.window.is_pointwise() && pairs <= kFewTiles * kernels.tile_rows;
        const double operand = !near ? kFarOperandCycles : shared ? kSharedOperandCycles : kOperandCycles;
        const double transforms =
            2.0 * pairs / kernels.vector_floats *
            (operand * static_cast<double>(layer.in_channels) + kSumCycles * static_cast<double>(layer.out_channels));
        return cycles_of(products + transforms, streamed_bytes(*this, call), call.bytes_per_cycle);
    }

    double required_speedup(const ConvAlgorithm&) const override { return 1.03; }  // 7/4 of the memory
    bool packs_for_one_call() const override { return false; }

    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const override {
        return make_strassen_step(context, layer);
    }

    BalancedLayout layout(const Layer& layer, const KernelTable& kernels) const override {
        const PanelGrid grid = panel_grid(layer, kernels);
        return {.panels = grid.total / 2,
                .panel = kStrassenProducts * (layer.in_channels / 2) * kernels.tile_cols,
                .scales = grid.total * grid.tile_cols,
                .steps = grid.reduction};
    }

  protected:
    void pack_panels(const PackCall& call, index_t panel_floats, float* powers, float* step_powers) const override {
        const Layer& layer = call.layer;
        const WeightSource& source = call.source;
        const KernelTable& kernels = call.kernels;
        const int threads = call.threads;
        float* const packed = call.floats();
        const PanelGrid grid = panel_grid(layer, kernels);
        const index_t half_k = layer.out_channels / 2;
        const PointwiseWeights weights{source.weight, source.strides[0], source.strides[1], layer.out_channels,
                                       layer.in_channels};
        output_powers(weights, threads, powers);
        input_powers(weights, powers, threads, step_powers);
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
        for (index_t p = 0; p < grid.total / 2; ++p) {
            const index_t first_k = p * grid.tile_cols;
            kernels.pack_strassen({.weight = source.weight,
                                   .stride_k = source.strides[0],
                                   .stride_c = source.strides[1],
                                   .first_k = first_k,
                                   .half_k = half_k,
                                   .half_c = layer.in_channels / 2,
                                   .powers = {powers + first_k, powers + half_k + first_k},
                                   .channel_scale = step_powers,
                                   .packed = packed + p * panel_floats});
        }
    }
};

}  // namespace

const BalancedAlgorithm& strassen() {
    static const Strassen algorithm;
    return algorithm;
}

index_t strassen_block(const Layer& layer, const KernelTable& kernels) {
    const index_t tile = kernels.tile_rows;
    return std::clamp(pairs_in_l2(layer, kShareOfOperands) / tile, kFewestStrassenTiles, kMostStrassenPairs / tile) *
           tile;
}

}  // namespace resfuse
