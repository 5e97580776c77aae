#include "conv/winograd_rows/winograd_rows.h"

#include "conv/direct/direct.h"
#include "conv/pack.h"
#include "conv/winograd/winograd.h"

namespace resfuse {

namespace {

class WinogradRows final : public ConvAlgorithm {
  public:
    const char* name() const override { return "winograd_rows"; }
    std::vector<std::string_view> requests() const override { return winograd_requests(); }

    bool applies(const Layer& layer, Extent out, const KernelTable& kernels) const override {
        constexpr index_t kMostChannels = 4;
        return layer.groups == 1 && !layer.is_int8() && layer.in_channels <= kMostChannels &&
               layer.window.kernel_w == 7 && layer.window.stride_w == 2 && !layer.window.is_dilated() &&
               layer.clamps() && out.w >= 4 * kernels.tile_rows;  // two register tiles of pairs at least
    }

    double cycles(const ConvCall& call) const override { return kRowProducts / 14.0 * direct().cycles(call); }

    std::size_t packed_bytes(const Layer& layer, const KernelTable& kernels) const override {
        const PanelGrid grid = panel_grid(layer, kernels);
        return float_bytes(grid.total * winograd_rows_panel_floats(layer, grid));
    }

    void pack(const PackCall& call) const override {
        pack_panels(call, winograd_rows_panel_floats(call.layer, panel_grid(call.layer, call.kernels)),
                    call.kernels.pack_winograd_rows);
    }

    std::unique_ptr<Step> make_step(const StepContext& context, std::size_t layer) const override {
        return make_winograd_rows_step(context, layer);
    }
};

}  // namespace

index_t winograd_rows_panel_floats(const Layer& layer, const PanelGrid& grid) {
    return kRowProducts * layer.window.kernel_h * layer.in_channels * grid.tile_cols;
}

const ConvAlgorithm& winograd_rows() {
    static const WinogradRows algorithm;
    return algorithm;
}

}  // namespace resfuse
