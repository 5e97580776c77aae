#include "conv/paired/paired.h"

#include <algorithm>

#include "conv/balanced/balance.h"
#include "conv/cost.h"
#include "conv/pack.h"
#include "machine/threads.h"
#include "memory/aligned.h"
#include "weights/panels.h"

namespace resfuse {

namespace {

// Terms of a sum that products in pairs compute in the time of a multiply-add, and cycles a vector of a pixel's
// channels as a row of theirs, and of a window that is copied before; measured.
constexpr double kTermsPerMultiplyAdd = 1.4, kRowCycles = 9.0, kWindowCycles = 3.0;

class Paired final : public BalancedAlgorithm {
  public:
    const char* name() const override { return "paired"; }
    std::vector<std::string_view> requests() const override { return {"paired"}; }

    bool applies(const Layer& layer, Extent, const KernelTable& kernels) const override {
        return kernels.paired_tile_rows > 0 && !layer.is_int8() && layer.groups == 1 && !layer.window.is_dilated() &&
               layer.in_channels % kLineFloats == 0 && layer.clamps();
    }

    double cycles(const ConvCall& call) const override {
        const Layer& layer = call.layer;
        const double pixels = static_cast<double>(call.batch * call.out.h * call.out.w);
        const index_t depth = panel_grid(layer, call.kernels).reduction;
        const double products = product_cycles(pixels, depth, layer.out_channels, call.kernels) / kTermsPerMultiplyAdd;
        const double row_cycles = kRowCycles + (layer.is_one_by_one() ? 0.0 : kWindowCycles);
        const double rows = pixels / call.kernels.vector_floats * row_cycles * static_cast<double>(depth);
        return cycles_of(products + rows, streamed_bytes(*this, call), call.bytes_per_cycle);
    }

    // No more memory, but rows are copied.
    double required_speedup(const ConvAlgorithm&) const override { return 1.05; }

    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const override {
        return make_paired_step(context, layer);
    }

    BalancedLayout layout(const Layer& layer, const KernelTable& kernels) const override {
        const PanelGrid grid = panel_grid(layer, kernels);
        return {.panels = grid.total,
                .panel = kernels.paired_matrix_rows(grid.reduction) * kernels.tile_cols,
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
        const index_t depth = grid.reduction;
        AlignedFloats squares(static_cast<std::size_t>(grid.total * depth));  // of each step's weights, by panel
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
        for (index_t p = 0; p < grid.total; ++p) {
            float* const weights = packed + (p + 1) * panel_floats - depth * grid.tile_cols;
            PackPanelArgs args = pack_args(layer, source);
            args.first_k = p * grid.tile_cols;
            args.cols = grid.cols(p);
            args.packed = weights;
            kernels.pack_direct(args);
            std::vector<double> columns(static_cast<std::size_t>(grid.tile_cols));
            kernels.column_squares(weights, depth, columns.data());
            float* const own = powers + args.first_k;
            for (std::size_t k = 0; k < columns.size(); ++k) own[k] = static_cast<float>(power_near(columns[k], depth));
            kernels.step_squares(weights, depth, own, squares.data() + p * depth);
        }
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
        for (index_t i = 0; i < depth; ++i) {
            double sum = 0.0;
            for (index_t p = 0; p < grid.total; ++p) sum += static_cast<double>(squares.data()[p * depth + i]);
            step_powers[i] = static_cast<float>(power_near(sum, layer.out_channels));
        }
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
        for (index_t p = 0; p < grid.total; ++p)
            kernels.pack_paired({.panel = packed + p * panel_floats,
                                 .depth = depth,
                                 .powers = powers + p * grid.tile_cols,
                                 .step_scale = step_powers});
    }
};

}  // namespace

const BalancedAlgorithm& paired() {
    static const Paired algorithm;
    return algorithm;
}

index_t paired_block(const Layer& layer, index_t total, int threads, const KernelTable& kernels) {
    const index_t tile = kernels.paired_tile_rows;
    const index_t depth = panel_grid(layer, kernels).reduction;
    const index_t fit = rows_in_l2(paired_pitch(depth), kShareOfOperands);
    const index_t most = std::clamp<index_t>(fit / tile, 2, 8) * tile;
    return ceil_div(total, ceil_div(ceil_div(total, most), threads) * threads);
}

}  // namespace resfuse
