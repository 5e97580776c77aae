#include "conv/winograd/blocking.h"

#include <algorithm>
#include <bit>

#include "conv/cost.h"
#include "machine/cpu.h"
#include "weights/panels.h"

namespace resfuse {

WinogradTiles winograd_tiles(const WinogradKernels& winograd, Extent out) {
    // A block of tiles is then made of whole images, so they must not have too many.
    constexpr index_t kMostTilesWithEdges = 64;
    WinogradTiles tiles{winograd.points * winograd.points, ceil_div(out.h, winograd.tile),
                        ceil_div(out.w, winograd.tile)};
    const auto edge = [&](index_t size) {
        const index_t outputs = size % winograd.tile;
        return outputs == 0 ? 0 : outputs == 3 ? 1 : 2;
    };
    if (winograd.has_edges && tiles.per_image() <= kMostTilesWithEdges) {
        tiles.edge_row = edge(out.h);
        tiles.edge_col = edge(out.w);
    }
    const auto products = [&](index_t count, int kind, int odd) {
        const WinogradPoints& points = winograd.kind_points[odd];
        return (count - 1) * std::popcount(points[0]) + std::popcount(points[static_cast<std::size_t>(kind)]);
    };
    const index_t rows = products(tiles.rows, tiles.edge_row, 0), cols = products(tiles.cols, tiles.edge_col, 0);
    tiles.sums = rows * cols;
    tiles.products =
        (rows + products(tiles.rows, tiles.edge_row, 1)) * (cols + products(tiles.cols, tiles.edge_col, 1));
    const auto calls = [&](index_t count, int kind) {  // tiles of one kind together
        index_t sum = 0;
        for (const int odd : {0, 1}) {
            const WinogradPoints& points = winograd.kind_points[odd];
            if (kind == 0 || count > 1) sum += std::popcount(points[0]);
            if (kind != 0) sum += std::popcount(points[static_cast<std::size_t>(kind)]);
        }
        return sum;
    };
    tiles.calls = calls(tiles.rows, tiles.edge_row) * calls(tiles.cols, tiles.edge_col);
    return tiles;
}

WinogradSchedule winograd_schedule(const Layer& layer, const WinogradKernels& winograd, const WinogradTiles& image,
                                   index_t images, int threads, const KernelTable& kernels) {
    const index_t tiles = images * image.per_image();
    const PanelGrid grid = panel_grid(layer, kernels);
    const index_t frequencies = winograd.points * winograd.points;
    const index_t depth = winograd_depth(layer), phases = winograd.stride * winograd.stride;
    const index_t panels = grid.per_group, cols = grid.tile_cols, rows = kernels.tile_rows;
    const index_t sharers = ceil_div(threads, layer.groups);  // of the tiles of one group
    const std::size_t l2 = cache_sizes().l2;
    const index_t budget = static_cast<index_t>(l2 * 5 / 8);
    constexpr index_t kSumBytes = 4;
    const index_t v_bytes = depth * winograd.operand_bytes, m_bytes = cols * kSumBytes;  // of a tile and frequency
    const auto blocks_for = [&](index_t bytes_per_tile, index_t most) {
        const index_t fit = std::clamp<index_t>(budget / bytes_per_tile / rows * rows, rows, most);
        index_t blocks = ceil_div(tiles, fit);
        // Half a register tile each is enough.
        if (blocks > 1 || tiles >= sharers * rows / 2) blocks = ceil_div(blocks, sharers) * sharers;
        return std::min({blocks, ceil_div(tiles, 4), image.has_edges() ? images : tiles});
    };
    const double weights = static_cast<double>(winograd_packed_bytes(layer, winograd, kernels));
    const double v = static_cast<double>(phases * frequencies * tiles * v_bytes);

    // Several groups of few channels share the way to their pixels.
    constexpr index_t kChannelsTogether = 128;
    index_t together = std::clamp<index_t>(kChannelsTogether / depth, 1, layer.groups);
    while (together > 1 && ceil_div(layer.groups, together) < 4 * threads) --together;
    // The sums of all panels wait for the last phase.
    const index_t fused_panels = phases > 1 ? panels : 1;
    const index_t fused_blocks = blocks_for(frequencies * (together * v_bytes + fused_panels * m_bytes), 112);
    const double fused_traffic =
        weights > static_cast<double>(l2) / 2 ? weights * static_cast<double>(fused_blocks) : weights;

    const WinogradSchedule fused{{false, ceil_div(tiles, fused_blocks), fused_panels, together}, fused_traffic};
    if (layer.groups > 1) return fused;

    const index_t split_block = std::min<index_t>(tiles, 8 * rows);
    const index_t split_blocks = ceil_div(tiles, split_block);
    index_t group = std::clamp<index_t>(budget / (frequencies * split_block * m_bytes), 1, panels);
    while (group > 1 && split_blocks * ceil_div(panels, group) < 2 * threads) --group;
    // A thread of few blocks would find all of its tiles in its own caches; those of the split form come from the other
    // cores, which takes so many times as long.
    constexpr double kFromOtherCores = 3.0;
    const double far = fused_blocks <= 2 * threads && 2 * ceil_div(tiles, fused_blocks) >= rows ? kFromOtherCores : 1.0;
    const double split_traffic =
        weights * static_cast<double>(split_blocks) + far * v * (1.0 + static_cast<double>(ceil_div(panels, group)));

    if (fused_blocks >= threads && fused_traffic <= split_traffic) return fused;
    const index_t part = ceil_div(panels, threads), m_panels = phases > 1 ? part : 1;
    const index_t bytes = frequencies * tiles * (v_bytes + m_panels * m_bytes);
    if (repeats_operands(threads) && threads <= panels && bytes <= static_cast<index_t>(l2 * 3 / 4))
        return {{false, tiles, m_panels, 1, threads}, weights};
    return {{true, ceil_div(tiles, split_blocks), group, 1}, split_traffic};
}

index_t winograd_depth(const Layer& layer) {
    return layer.is_int8() ? (layer.group_in() + 1) / 2 * 2 : layer.group_in();
}

std::size_t winograd_packed_bytes(const Layer& layer, const WinogradKernels& winograd, const KernelTable& kernels) {
    const PanelGrid grid = panel_grid(layer, kernels);
    return static_cast<std::size_t>(winograd.weight_points * winograd.weight_points * winograd_depth(layer) *
                                    grid.total * grid.tile_cols * winograd.operand_bytes);
}

}  // namespace resfuse
