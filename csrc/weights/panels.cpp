#include "weights/panels.h"

namespace resfuse {

PanelGrid panel_grid(const Layer& layer, const KernelTable& kernels) {
    const index_t per_group = (layer.group_out() + kernels.tile_cols - 1) / kernels.tile_cols;
    return {per_group, per_group * layer.groups, layer.window.kernel_h * layer.window.kernel_w * layer.group_in(),
            layer.group_out(), kernels.tile_cols};
}

bool has_small_groups(const Layer& layer, const KernelTable& kernels) {
    const int vector_floats = kernels.vector_floats;
    return layer.groups > 1 && layer.in_channels == layer.out_channels && layer.group_in() < vector_floats &&
           vector_floats % layer.group_in() == 0;
}

}  // namespace resfuse
