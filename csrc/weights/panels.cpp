#include "weights/panels.h"

namespace resfuse {

PanelGrid panel_grid(const Layer& layer, const KernelTable& kernels) {
    const index_t per_group = (layer.group_out() + kernels.tile_cols - 1) / kernels.tile_cols;
    return {per_group, per_group * layer.groups, runs_of(layer, kernels).depth(), layer.group_out(), kernels.tile_cols};
}

Runs runs_of(const Layer& layer, const KernelTable& kernels, bool pairs) {
    constexpr index_t kLineBytes = 64;
    const Window& w = layer.window;
    const bool by_rows = layer.groups == 1 && w.dilation_w == 1;
    const index_t length = (by_rows ? w.kernel_w : 1) * layer.group_in();
    const index_t operand_bytes = layer.is_int8() ? kernels.int8.operand_bytes : 2;
    if (kernels.join_windows && (pairs || layer.is_int8()) && by_rows && w.kernel_h > 1 &&
        length * operand_bytes <= kLineBytes) {
        const index_t all = w.kernel_h * length,
                      unit = (all * operand_bytes < kLineBytes ? 4 : kLineBytes) / operand_bytes;
        return {1, all, (all + unit - 1) / unit * unit, true};
    }
    const index_t unit = layer.is_int8() ? kernels.int8.units.operands : 1;
    return {w.kernel_h * (by_rows ? 1 : w.kernel_w), length, (length + unit - 1) / unit * unit};
}

bool has_small_groups(const Layer& layer, const KernelTable& kernels) {
    const int vector_floats = kernels.vector_floats;
    const bool fits = layer.groups > 1 && layer.in_channels == layer.out_channels &&
                      layer.group_in() <= vector_floats && vector_floats % layer.group_in() == 0;
    if (!layer.is_int8() || !fits) return fits;
    const index_t products = layer.group_in() * layer.window.kernel_h * layer.window.kernel_w;
    return layer.group_in() <= kMostChannelsOfByteGroups && products * 255 * 128 < index_t{1} << 24;
}

}  // namespace resfuse
