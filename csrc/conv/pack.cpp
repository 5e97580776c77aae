#include "conv/pack.h"

#include "machine/threads.h"
#include "weights/panels.h"

namespace resfuse {

PackPanelArgs pack_args(const Layer& layer, const WeightSource& source) {
    return {.weight = source.weight,
            .stride_k = source.strides[0],
            .stride_c = source.strides[1],
            .stride_h = source.strides[2],
            .stride_w = source.strides[3],
            .channels = layer.group_in(),
            .kernel_h = layer.window.kernel_h,
            .kernel_w = layer.window.kernel_w};
}

void pack_panels(const PackCall& call, index_t panel_floats, void (*pack_panel)(const PackPanelArgs&)) {
    const PanelGrid grid = panel_grid(call.layer, call.kernels);
#pragma omp parallel for num_threads(usable_threads(call.threads)) schedule(static)
    for (index_t p = 0; p < grid.total; ++p) {
        PackPanelArgs args = pack_args(call.layer, call.source);
        args.scale = call.source.scale.empty() ? nullptr : call.source.scale.data();
        args.first_k = grid.channel(p);
        args.cols = grid.cols(p);
        args.packed = call.floats() + p * panel_floats;
        pack_panel(args);
    }
}

void pack_int8_panels(const PackCall& call, void (*pack_panel)(const PackInt8Args&), std::size_t panel_bytes) {
    const PanelGrid grid = panel_grid(call.layer, call.kernels);
    const Runs runs = runs_of(call.layer, call.kernels);
    const index_t depth = runs.count * runs.length;
#pragma omp parallel for num_threads(usable_threads(call.threads)) schedule(static)
    for (index_t p = 0; p < grid.total; ++p)
        pack_panel({.weights = call.int8 + grid.channel(p) * depth,
                    .depth = depth,
                    .segments = runs.count,
                    .segment_length = runs.length,
                    .padded = runs.padded,
                    .cols = grid.cols(p),
                    .packed = static_cast<std::byte*>(call.packed) + static_cast<std::size_t>(p) * panel_bytes});
}

}  // namespace resfuse
