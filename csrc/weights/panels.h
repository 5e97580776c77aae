// How weights and values by output channel are laid for the kernels.
#pragma once

#include "program/program.h"

namespace resfuse {

// Panels of a convolution: groups never share one.
struct PanelGrid {
    index_t per_group;   // panels of one group
    index_t total;       // panels of all groups
    index_t reduction;   // kernel_h * kernel_w * channels of one group, with what pads products of bytes
    index_t group_cols;  // output channels of one group
    index_t tile_cols;

    // First output channel of a panel, within its group and of all.
    index_t in_group(index_t panel) const { return panel % per_group * tile_cols; }
    index_t channel(index_t panel) const { return panel / per_group * group_cols + in_group(panel); }
    // Output channels of some panels of one group.
    index_t cols(index_t panel, index_t panels = 1) const {
        const index_t room = panels * tile_cols, left = group_cols - in_group(panel);
        return room < left ? room : left;
    }
};
PanelGrid panel_grid(const Layer& layer, const KernelTable& kernels);

// How windows are cut into runs of neighbouring operands: rows of taps, or single taps where these are apart. Products
// of bytes take some at once, so their runs are padded with weights of zero. Of products of bytes, or in pairs, whose
// rows of taps are short, a run may be a whole window, `joined` row by row and padded.
struct Runs {
    index_t count, length, padded;
    bool joined = false;

    index_t depth() const { return count * padded; }  // of all, with what pads them
};
Runs runs_of(const Layer& layer, const KernelTable& kernels, bool pairs = false);

// Groups of as many output as input channels that divide a vector: lanes of vectors, which the kernels of
// kernels/grouped compute. Their values lie by channel, those of all other convolutions by panel. Of bytes also few
// enough products for exact sums in floats.
bool has_small_groups(const Layer& layer, const KernelTable& kernels);

}  // namespace resfuse
