#include "engine/cost.h"

#include <algorithm>

#include "engine/step.h"

namespace resfuse {

namespace {

constexpr double kGemmEfficiency = 0.8;
// Bytes a core streams per cycle from beyond its L2 while it computes.
constexpr double kStreamBytesPerCycle = 6.0;

double stream_cycles(std::size_t bytes) { return static_cast<double>(bytes) / kStreamBytesPerCycle; }

double direct_cycles(const Layer& layer, Extent out, index_t batch, const KernelTable& kernels) {
    const PanelGrid grid = panel_grid(layer, kernels);
    const double multiplies = static_cast<double>(batch * out.h * out.w) * static_cast<double>(grid.reduction) *
                              static_cast<double>(grid.total * grid.tile_cols);
    return multiplies / (2.0 * kernels.vector_floats * kGemmEfficiency) +
           stream_cycles(packed_bytes(layer, Algorithm::direct, kernels));
}

double winograd_cycles(const Layer& layer, Algorithm algorithm, Extent out, index_t batch, const KernelTable& kernels) {
    const WinogradTiles tiles = winograd_tiles(algorithm, out);
    const PanelGrid grid = panel_grid(layer, kernels);
    const double count = static_cast<double>(batch * tiles.per_image);
    const double multiplies = count * static_cast<double>(tiles.frequencies * layer.in_channels) *
                              static_cast<double>(grid.total * grid.tile_cols);
    // About three vector operations per element and transform, measured.
    const double transforms = count * 3.0 * static_cast<double>(tiles.frequencies) *
                              static_cast<double>(layer.in_channels + layer.out_channels) / kernels.vector_floats;
    return multiplies / (2.0 * kernels.vector_floats * kGemmEfficiency) + transforms +
           stream_cycles(packed_bytes(layer, algorithm, kernels));
}

}  // namespace

WinogradTiles winograd_tiles(Algorithm algorithm, Extent out) {
    const index_t tile = algorithm == Algorithm::winograd_f2 ? 2 : 4;
    const index_t per_row = ceil_div(out.w, tile);
    return {(tile + 2) * (tile + 2), tile, per_row, per_row * ceil_div(out.h, tile)};
}

Algorithm choose_algorithm(const Layer& layer, Extent out, index_t batch, const KernelTable& kernels) {
    if (layer.has_small_groups(kernels.vector_floats)) return Algorithm::grouped;
    if (!layer.winograd_applies() || layer.algorithm == Algorithm::direct) return Algorithm::direct;
    if (layer.algorithm == Algorithm::winograd_f2 || layer.algorithm == Algorithm::winograd_f4) return layer.algorithm;
    const double f2 = winograd_cycles(layer, Algorithm::winograd_f2, out, batch, kernels);
    const double f4 = winograd_cycles(layer, Algorithm::winograd_f4, out, batch, kernels);
    const Algorithm winograd = f2 < f4 ? Algorithm::winograd_f2 : Algorithm::winograd_f4;
    if (layer.algorithm == Algorithm::winograd) return winograd;
    return direct_cycles(layer, out, batch, kernels) < std::min(f2, f4) ? Algorithm::direct : winograd;
}

index_t images_per_wave(std::size_t weight_bytes, std::size_t activation_bytes, index_t batch, int threads) {
    const CacheSizes& caches = cache_sizes();
    // Weights that do not fit beside the activations are streamed again in every wave: take the batch in few waves.
    constexpr index_t kFewestImages = 32;
    constexpr std::size_t kMostActivationBytes = std::size_t{64} << 20;
    const index_t affordable = static_cast<index_t>(kMostActivationBytes / std::max<std::size_t>(activation_bytes, 1));
    const index_t whole = std::min(batch, std::max(kFewestImages, affordable));
    if (weight_bytes > caches.l2) return whole;
    const std::size_t budget = caches.l2 * static_cast<std::size_t>(threads);
    const index_t fit = static_cast<index_t>(budget / std::max<std::size_t>(activation_bytes, 1));
    const index_t wave = std::max<index_t>(fit / threads, 1) * threads;
    return std::min(whole, wave);
}

WinogradBlocking winograd_blocking(const Layer& layer, Algorithm algorithm, index_t tiles, int threads,
                                   const KernelTable& kernels) {
    const PanelGrid grid = panel_grid(layer, kernels);
    const index_t frequencies = algorithm == Algorithm::winograd_f2 ? 16 : 36;
    const index_t panels = grid.total, cols = grid.tile_cols, rows = kernels.tile_rows;
    const std::size_t l2 = cache_sizes().l2;
    const index_t budget = static_cast<index_t>(l2 * 6 / 10 / sizeof(float));
    const auto blocks_for = [&](index_t floats_per_tile, index_t most) {
        const index_t fit = std::clamp<index_t>(budget / floats_per_tile / rows * rows, rows, most);
        index_t blocks = ceil_div(tiles, fit);
        if (blocks > 1 || tiles >= 2 * rows) blocks = ceil_div(blocks, threads) * threads;
        return std::min(blocks, ceil_div(tiles, 4));
    };
    const double weights = static_cast<double>(packed_bytes(layer, algorithm, kernels));
    const double v = static_cast<double>(frequencies * tiles * layer.in_channels) * sizeof(float);

    const index_t fused_blocks = blocks_for(frequencies * (layer.in_channels + cols), 112);
    const double fused_traffic =
        weights > static_cast<double>(l2) / 2 ? weights * static_cast<double>(fused_blocks) : weights;

    const index_t split_block = std::min<index_t>(tiles, 8 * rows);
    const index_t split_blocks = ceil_div(tiles, split_block);
    index_t group = std::clamp<index_t>(budget / (frequencies * split_block * cols), 1, panels);
    while (group > 1 && split_blocks * ceil_div(panels, group) < 2 * threads) --group;
    const double split_traffic =
        weights * static_cast<double>(split_blocks) + v * (1.0 + static_cast<double>(ceil_div(panels, group)));

    if (fused_blocks < threads || split_traffic < fused_traffic) return {true, ceil_div(tiles, split_blocks), group};
    return {false, ceil_div(tiles, fused_blocks), 1};
}

}  // namespace resfuse
