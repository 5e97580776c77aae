// Direct convolution: computes every layer but those of small groups. And the same with products of 16-bit elements in
// pairs.
#include "conv/direct/direct.h"

#include <algorithm>
#include <cstring>

#include "conv/cost.h"
#include "conv/pack.h"
#include "machine/dispatch.h"
#include "machine/threads.h"
#include "memory/aligned.h"
#include "weights/panels.h"

namespace resfuse {

namespace {

// Groups multiply one row of an image at a time: so many rows of register tiles for one that has results.
double row_share(const ConvCall& call) {
    if (call.layer.groups == 1 || call.layer.is_int8()) return 1.0;
    const index_t tile = call.kernels.tile_rows;
    return static_cast<double>(ceil_div(call.out.w, tile) * tile) / static_cast<double>(call.out.w);
}

class Direct final : public ConvAlgorithm {
  public:
    const char* name() const override { return "direct"; }
    std::vector<std::string_view> requests() const override { return {"direct"}; }

    bool applies(const Layer& layer, Extent, const KernelTable& kernels) const override {
        return !has_small_groups(layer, kernels);
    }

    double cycles(const ConvCall& call) const override {
        const Layer& layer = call.layer;
        const double pixels = static_cast<double>(call.batch * call.out.h * call.out.w * layer.groups);
        const index_t depth = panel_grid(layer, call.kernels).reduction;
        const double terms = layer.is_int8() ? call.kernels.int8.units.terms : 1.0;
        return cycles_of(product_cycles(pixels, depth, layer.group_out(), call.kernels) * row_share(call) / terms,
                         streamed_bytes(*this, call), call.bytes_per_cycle);
    }

    bool reads_any_strides() const override { return true; }

    std::size_t packed_bytes(const Layer& layer, const KernelTable& kernels) const override {
        const PanelGrid grid = panel_grid(layer, kernels);
        if (layer.is_int8()) return static_cast<std::size_t>(grid.total * kernels.int8.packed_bytes(grid.reduction));
        return float_bytes(grid.total * grid.reduction * grid.tile_cols);
    }

    void pack(const PackCall& call) const override {
        const PanelGrid grid = panel_grid(call.layer, call.kernels);
        if (call.layer.is_int8()) {
            const index_t bytes = call.kernels.int8.packed_bytes(grid.reduction);
            return pack_int8_panels(call, call.kernels.int8.pack, static_cast<std::size_t>(bytes));
        }
        pack_panels(call, grid.reduction * grid.tile_cols, call.kernels.pack_direct);
    }

    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const override {
        return make_direct_step(context, layer, *this);
    }

    bool joins(const StepContext& context, std::size_t before, const ConvAlgorithm*, std::size_t layer) const override {
        return can_take_gate(context, before, layer);
    }
    std::unique_ptr<Step> make_joined_step(const StepContext& context, std::size_t before,
                                           std::size_t layer) const override {
        return make_gated_step(context, before, layer);
    }
};

class DirectPairs final : public ConvAlgorithm {
  public:
    const char* name() const override { return "direct_pairs"; }
    std::vector<std::string_view> requests() const override { return {"direct"}; }

    bool applies(const Layer& layer, Extent, const KernelTable& kernels) const override {
        const ElementKernels& elements = kernels_of(kernels, layer.input_type);
        if (layer.is_int8() || elements.pair_gemm == nullptr || layer.type != layer.input_type) return false;
        // A unit may not reach past a run: what lies there may be infinite.
        return !has_small_groups(layer, kernels) &&
               runs_of(layer, kernels, true).padded % elements.pair_units.operands == 0;
    }

    double cycles(const ConvCall& call) const override {
        const Layer& layer = call.layer;
        const double pixels = static_cast<double>(call.batch * call.out.h * call.out.w * layer.groups);
        const index_t depth = reduction(layer, call.kernels);
        const double terms = kernels_of(call.kernels, layer.input_type).pair_units.terms;
        return cycles_of(product_cycles(pixels, depth, layer.group_out(), call.kernels) / terms,
                         streamed_bytes(*this, call), call.bytes_per_cycle);
    }

    bool reads_any_strides() const override { return true; }

    std::size_t packed_bytes(const Layer& layer, const KernelTable& kernels) const override {
        const PanelGrid grid = panel_grid(layer, kernels);
        return static_cast<std::size_t>(grid.total * reduction(layer, kernels) * grid.tile_cols) * kOperandBytes;
    }

    void pack(const PackCall& call) const override {
        const PanelGrid grid = panel_grid(call.layer, call.kernels);
        const ElementKernels& elements = kernels_of(call.kernels, call.layer.input_type);
        const index_t depth = reduction(call.layer, call.kernels);
        const std::size_t panel_bytes = packed_bytes(call.layer, call.kernels) / static_cast<std::size_t>(grid.total);
#pragma omp parallel num_threads(usable_threads(call.threads))
        {
            const AlignedFloats panel(static_cast<std::size_t>(depth * grid.tile_cols));
            std::fill_n(panel.data(), panel.size(), 0.0f);
            PackPanelArgs args = pack_args(call.layer, call.source);
            args.packed = panel.data();
#pragma omp for schedule(static)
            for (index_t p = 0; p < grid.total; ++p) {
                args.first_k = grid.channel(p);
                args.cols = grid.cols(p);
                call.kernels.pack_direct(args);
                elements.pack_pairs(panel.data(), depth);
                std::memcpy(static_cast<std::byte*>(call.packed) + static_cast<std::size_t>(p) * panel_bytes,
                            panel.data(), panel_bytes);
            }
        }
    }

    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const override {
        return make_direct_step(context, layer, *this);
    }

  private:
    static constexpr std::size_t kOperandBytes = 2;

    // With what pads joined windows.
    static index_t reduction(const Layer& layer, const KernelTable& kernels) {
        return runs_of(layer, kernels, true).depth();
    }
};

}  // namespace

const ConvAlgorithm& direct() {
    static const Direct algorithm;
    return algorithm;
}

const ConvAlgorithm& direct_pairs() {
    static const DirectPairs algorithm;
    return algorithm;
}

}  // namespace resfuse
