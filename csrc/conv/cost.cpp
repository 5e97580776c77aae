#include "conv/cost.h"

#include <algorithm>
#include <bit>

#include "plan/step.h"

namespace resfuse {

namespace {

// Shares of the peak rate of fused multiply-adds that the kernels reach; measured.
constexpr double kGemmEfficiency = 0.9;
constexpr double kOneVectorEfficiency = 0.65;  // loads are the bottleneck there, and the reduction is short
constexpr double kGroupedEfficiency = 0.78;
// Bytes a core streams per cycle while it computes, from L3 and from memory; measured.
constexpr double kCacheBytesPerCycle = 9.0;
constexpr double kMemoryBytesPerCycle = 4.5;
// Of the shorter of computing and streaming, what the longer does not hide; measured.
constexpr double kNotHidden = 0.3;
// Vector operations per element and transform of a Winograd convolution, loads and stores counted in; measured.
constexpr double kTransformOperations = 9.0;
// Cycles a vector of a pixel's channels in Strassen's algorithm: its operands, where they stay in L2 and where they are
// so many that they do not, and its sums; measured.
constexpr double kOperandCycles = 5.5, kFarOperandCycles = 50.0;
constexpr double kSumCycles = 6.0;
// Terms of a sum that products in pairs compute in the time of a multiply-add, and cycles a vector of a pixel's
// channels as a row of theirs, and of a window that is copied before; measured.
constexpr double kTermsPerMultiplyAdd = 1.4, kPairedRowCycles = 9.0, kWindowCycles = 3.0;
constexpr index_t kFewestStrassenTiles = 2;      // register tiles of a block, so that weights do not stream too often
constexpr double kGroupedTransformCycles = 9.0;  // a vector of outputs of F(2x2, 3x3); measured
// Transformed weights take more memory, so that must be faster by these factors at least.
constexpr double kWinogradGain = 1.05;  // several times the memory
constexpr double kStrassenGain = 1.03;  // 7/4
constexpr double kPairedGain = 1.05;    // not more, but rows are copied

// Of computing and of streaming some bytes from beyond L2 meanwhile.
double cycles_of(double compute, double bytes, double bytes_per_cycle) {
    const double stream = bytes <= static_cast<double>(cache_sizes().l2 / 2) ? 0.0 : bytes / bytes_per_cycle;
    return std::max(compute, stream) + kNotHidden * std::min(compute, stream);
}

// Of the product of some rows with the weights of a group.
double product_cycles(double rows, index_t depth, index_t columns, const KernelTable& kernels) {
    const index_t vectors = ceil_div(columns, kernels.vector_floats);
    return rows * static_cast<double>(depth * vectors) /
           (multiply_adds_per_cycle(kernels.vector_floats) * (vectors == 1 ? kOneVectorEfficiency : kGemmEfficiency));
}

double direct_cycles(const Layer& layer, Extent out, index_t batch, double bytes_per_cycle,
                     const KernelTable& kernels) {
    const double pixels = static_cast<double>(batch * out.h * out.w * layer.groups);
    return cycles_of(product_cycles(pixels, panel_grid(layer, kernels).reduction, layer.group_out(), kernels),
                     static_cast<double>(packed_bytes(layer, Algorithm::direct, kernels)), bytes_per_cycle);
}

double paired_cycles(const Layer& layer, Extent out, index_t batch, double bytes_per_cycle,
                     const KernelTable& kernels) {
    const double pixels = static_cast<double>(batch * out.h * out.w);
    const index_t depth = panel_grid(layer, kernels).reduction;
    const double products = product_cycles(pixels, depth, layer.out_channels, kernels) / kTermsPerMultiplyAdd;
    const double row_cycles = kPairedRowCycles + (layer.is_one_by_one() ? 0.0 : kWindowCycles);
    const double rows = pixels / kernels.vector_floats * row_cycles * static_cast<double>(depth);
    return cycles_of(products + rows, static_cast<double>(packed_bytes(layer, Algorithm::paired, kernels)),
                     bytes_per_cycle);
}

// Rows of so many floats that are a share of L2.
index_t rows_in_l2(index_t floats, double share) {
    return static_cast<index_t>(share * static_cast<double>(cache_sizes().l2 / sizeof(float))) / floats;
}

// Of Strassen's algorithm, the pairs whose operands are a share of L2.
index_t pairs_in_l2(const Layer& layer, double share) {
    return rows_in_l2(kStrassenProducts * (layer.in_channels / 2), share);
}

// Of L2, what the operands of a task of Strassen's algorithm or in pairs may take: what comes next, the pixels
// themselves and the weights pass through it as well.
constexpr double kShareOfOperands = 0.2;

double strassen_cycles(const Layer& layer, Extent out, index_t batch, double bytes_per_cycle,
                       const KernelTable& kernels) {
    const double pairs = static_cast<double>(batch * ceil_div(out.h * out.w, 2));
    const double products = static_cast<double>(kStrassenProducts) *
                            product_cycles(pairs, layer.in_channels / 2, layer.out_channels / 2, kernels);
    const bool near = kFewestStrassenTiles * kernels.tile_rows <= pairs_in_l2(layer, 0.6);
    const double transforms = 2.0 * pairs / kernels.vector_floats *
                              ((near ? kOperandCycles : kFarOperandCycles) * static_cast<double>(layer.in_channels) +
                               kSumCycles * static_cast<double>(layer.out_channels));
    return cycles_of(products + transforms, static_cast<double>(packed_bytes(layer, Algorithm::strassen, kernels)),
                     bytes_per_cycle);
}

// Of small groups: products elementwise.
double grouped_cycles(const Layer& layer, Algorithm algorithm, Extent out, index_t batch, const KernelTable& kernels) {
    const index_t vectors = batch * ceil_div(layer.out_channels, kernels.vector_floats);
    const double rate = multiply_adds_per_cycle(kernels.vector_floats) * kGroupedEfficiency;
    if (algorithm == Algorithm::grouped) {
        const index_t depth = layer.group_in() * layer.window.kernel_h * layer.window.kernel_w;
        return static_cast<double>(vectors * out.h * out.w * depth) / rate;
    }
    // Blocks of two tiles.
    const double outputs = static_cast<double>(vectors * ceil_div(out.h, 2) * ceil_div(out.w, 4) * 8);
    return outputs * (static_cast<double>(4 * layer.group_in()) / rate + kGroupedTransformCycles);
}

// A blocking and the bytes that go through it from beyond L2.
struct WinogradSchedule {
    WinogradBlocking blocking;
    double traffic;
};

WinogradSchedule winograd_schedule(const Layer& layer, Algorithm algorithm, const WinogradTiles& image, index_t images,
                                   int threads, const KernelTable& kernels) {
    const index_t tiles = images * image.per_image();
    const PanelGrid grid = panel_grid(layer, kernels);
    const WinogradKernels& winograd = winograd_kernels(kernels, algorithm);
    const index_t frequencies = winograd.points * winograd.points;
    const index_t depth = layer.group_in(), phases = winograd.stride * winograd.stride;
    const index_t panels = grid.per_group, cols = grid.tile_cols, rows = kernels.tile_rows;
    const index_t sharers = ceil_div(threads, layer.groups);  // of the tiles of one group
    const std::size_t l2 = cache_sizes().l2;
    const index_t budget = static_cast<index_t>(l2 * 5 / 8 / sizeof(float));
    const auto blocks_for = [&](index_t floats_per_tile, index_t most) {
        const index_t fit = std::clamp<index_t>(budget / floats_per_tile / rows * rows, rows, most);
        index_t blocks = ceil_div(tiles, fit);
        // Half a register tile each is enough.
        if (blocks > 1 || tiles >= sharers * rows / 2) blocks = ceil_div(blocks, sharers) * sharers;
        return std::min({blocks, ceil_div(tiles, 4), image.has_edges() ? images : tiles});
    };
    const double weights = static_cast<double>(packed_bytes(layer, algorithm, kernels));
    const double v = static_cast<double>(phases * frequencies * tiles * depth) * sizeof(float);

    // Several groups of few channels share the way to their pixels.
    constexpr index_t kChannelsTogether = 128;
    index_t together = std::clamp<index_t>(kChannelsTogether / depth, 1, layer.groups);
    while (together > 1 && ceil_div(layer.groups, together) < 4 * threads) --together;
    // The sums of all panels wait for the last phase.
    const index_t fused_panels = phases > 1 ? panels : 1;
    const index_t fused_blocks = blocks_for(frequencies * (together * depth + fused_panels * cols), 112);
    const double fused_traffic =
        weights > static_cast<double>(l2) / 2 ? weights * static_cast<double>(fused_blocks) : weights;

    const WinogradSchedule fused{{false, ceil_div(tiles, fused_blocks), fused_panels, together}, fused_traffic};
    if (layer.groups > 1) return fused;

    const index_t split_block = std::min<index_t>(tiles, 8 * rows);
    const index_t split_blocks = ceil_div(tiles, split_block);
    index_t group = std::clamp<index_t>(budget / (frequencies * split_block * cols), 1, panels);
    while (group > 1 && split_blocks * ceil_div(panels, group) < 2 * threads) --group;
    // A thread of few blocks would find all of its tiles in its own caches; those of the split form come from the other
    // cores, which takes so many times as long.
    constexpr double kFromOtherCores = 3.0;
    const double far = fused_blocks <= 2 * threads && 2 * ceil_div(tiles, fused_blocks) >= rows ? kFromOtherCores : 1.0;
    const double split_traffic =
        weights * static_cast<double>(split_blocks) + far * v * (1.0 + static_cast<double>(ceil_div(panels, group)));

    if (fused_blocks >= threads && fused_traffic <= split_traffic) return fused;
    const index_t part = ceil_div(panels, threads), m_panels = phases > 1 ? part : 1;
    const index_t floats = frequencies * tiles * (depth + m_panels * cols);
    if (repeats_operands(threads) && threads <= panels && floats <= static_cast<index_t>(l2 * 3 / 4 / sizeof(float)))
        return {{false, tiles, m_panels, 1, threads}, weights};
    return {{true, ceil_div(tiles, split_blocks), group, 1}, split_traffic};
}

double winograd_cycles(const Layer& layer, Algorithm algorithm, Extent out, index_t batch, double bytes_per_cycle,
                       const KernelTable& kernels) {
    const WinogradKernels& winograd = winograd_kernels(kernels, algorithm);
    const WinogradTiles tiles = winograd_tiles(winograd, out);
    const double products = static_cast<double>(batch * tiles.products);
    const double transforms =
        static_cast<double>(batch * (tiles.products * layer.in_channels + tiles.sums * layer.out_channels)) *
        kTransformOperations / kernels.vector_floats;
    // As one thread would do it: the choice must not depend on their number.
    const double traffic = winograd_schedule(layer, algorithm, tiles, batch, 1, kernels).traffic;
    return cycles_of(
        product_cycles(products * static_cast<double>(layer.groups), layer.group_in(), layer.group_out(), kernels) +
            transforms,
        traffic, bytes_per_cycle);
}

}  // namespace

WinogradTiles winograd_tiles(const WinogradKernels& winograd, Extent out) {
    // A block of tiles is then made of whole images, so they must not have too many.
    constexpr index_t kMostTilesWithEdges = 64;
    WinogradTiles tiles{winograd.points * winograd.points, ceil_div(out.h, winograd.tile),
                        ceil_div(out.w, winograd.tile)};
    const auto edge = [&](index_t size) {
        const index_t outputs = size % winograd.tile;
        return outputs == 0 ? 0 : outputs == 3 ? 1 : 2;
    };
    if (winograd.input[1][1] != nullptr && tiles.per_image() <= kMostTilesWithEdges) {
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
    return tiles;
}

double stream_bytes_per_cycle(const std::vector<Layer>& layers, const KernelTable& kernels) {
    // Of a cache that others share; Winograd's weights are several times as large.
    constexpr std::size_t kShareOfL3 = 4;
    std::size_t bytes = 0;
    for (const Layer& layer : layers)
        if (layer.kind == LayerKind::conv && !layer.has_small_groups(kernels.vector_floats))
            bytes += packed_bytes(layer, Algorithm::direct, kernels);
    return bytes <= cache_sizes().l3 / kShareOfL3 ? kCacheBytesPerCycle : kMemoryBytesPerCycle;
}

double estimated_cycles(const Layer& layer, Algorithm algorithm, Extent out, index_t batch, double bytes_per_cycle,
                        const KernelTable& kernels) {
    if (algorithm == Algorithm::grouped || algorithm == Algorithm::grouped_f2)
        return grouped_cycles(layer, algorithm, out, batch, kernels);
    if (algorithm == Algorithm::direct) return direct_cycles(layer, out, batch, bytes_per_cycle, kernels);
    if (algorithm == Algorithm::winograd_rows)
        return kRowProducts / 14.0 * direct_cycles(layer, out, batch, bytes_per_cycle, kernels);
    if (algorithm == Algorithm::paired) return paired_cycles(layer, out, batch, bytes_per_cycle, kernels);
    if (algorithm == Algorithm::strassen) return strassen_cycles(layer, out, batch, bytes_per_cycle, kernels);
    return winograd_cycles(layer, algorithm, out, batch, bytes_per_cycle, kernels);
}

Algorithm choose_algorithm(const Layer& layer, Extent out, index_t batch, double bytes_per_cycle,
                           const KernelTable& kernels) {
    const auto cycles = [&](Algorithm a) { return estimated_cycles(layer, a, out, batch, bytes_per_cycle, kernels); };
    const bool automatic = is_automatic(layer.algorithm);
    // `transformed` if it is so many times as fast as another algorithm at least, or was asked for.
    const auto unless = [&](Algorithm other, Algorithm transformed, double gain) {
        return automatic && cycles(other) < gain * cycles(transformed) ? other : transformed;
    };
    if (layer.has_small_groups(kernels.vector_floats)) {
        const bool transforms = layer.has_grouped_f2() && allows_winograd(layer.algorithm);
        return transforms ? unless(Algorithm::grouped, Algorithm::grouped_f2, 1.0) : Algorithm::grouped;
    }
    // Two register tiles of pairs at least.
    if (layer.has_winograd_rows() && allows_winograd(layer.algorithm) && out.w >= 4 * kernels.tile_rows)
        return Algorithm::winograd_rows;
    const bool pairs = layer.has_paired(kernels) && allows_paired(layer.algorithm);
    if (pairs && layer.is_one_by_one()) return unless(Algorithm::direct, Algorithm::paired, kPairedGain);
    Algorithm best = Algorithm::direct;
    if (layer.has_strassen(kernels) && allows_strassen(layer.algorithm)) {
        best = unless(best, Algorithm::strassen, kStrassenGain);
    } else if (layer.winograd_stride() == 2 && allows_winograd(layer.algorithm)) {
        best = unless(best, Algorithm::winograd_stride2, kWinogradGain);
    } else if (layer.winograd_stride() == 1 && allows_winograd(layer.algorithm)) {
        const bool one = layer.algorithm == Algorithm::winograd_f2 || layer.algorithm == Algorithm::winograd_f4;
        if (one) return layer.algorithm;
        const bool f2 = cycles(Algorithm::winograd_f2) < cycles(Algorithm::winograd_f4);
        best = unless(best, f2 ? Algorithm::winograd_f2 : Algorithm::winograd_f4, kWinogradGain);
    }
    return pairs ? unless(best, Algorithm::paired, kPairedGain) : best;
}

index_t images_per_wave(std::size_t weight_bytes, std::size_t activation_bytes, index_t batch, int threads) {
    const CacheSizes& caches = cache_sizes();
    constexpr index_t kFewestImages = 32;
    constexpr std::size_t kMostActivationBytes = std::size_t{64} << 20;
    const index_t affordable = static_cast<index_t>(kMostActivationBytes / std::max<std::size_t>(activation_bytes, 1));
    const index_t whole = std::min(batch, std::max(kFewestImages, affordable));
    const std::size_t budget = caches.l2 * static_cast<std::size_t>(threads);
    const index_t fit = static_cast<index_t>(budget / std::max<std::size_t>(activation_bytes, 1));
    const index_t wave = std::max<index_t>(fit / threads, 1) * threads;
    // Each wave streams the weights again, which must cost less than the activations that then stay in cache.
    const bool streams_more = weight_bytes / static_cast<std::size_t>(wave) > activation_bytes / 2;
    if (weight_bytes > caches.l2 && streams_more) return whole;
    return std::min(whole, wave);
}

// 160 keep L1's room for what else passes; where fewer multiply-adds start in a cycle, that matters less than the
// stores do, which are slow there too.
index_t gemm_chunk(const KernelTable& kernels) {
    return multiply_adds_per_cycle(kernels.vector_floats) < 2.0 ? 256 : 160;
}

bool repeats_operands(int threads) {
    constexpr int kMost = 4;
    return threads > 1 && threads <= kMost;
}

index_t strassen_block(const Layer& layer, const KernelTable& kernels) {
    const index_t tile = kernels.tile_rows;
    return std::clamp(pairs_in_l2(layer, kShareOfOperands) / tile, kFewestStrassenTiles, kMostStrassenPairs / tile) *
           tile;
}

index_t paired_block(const Layer& layer, index_t total, int threads, const KernelTable& kernels) {
    const index_t tile = kernels.paired_tile_rows;
    const index_t depth = panel_grid(layer, kernels).reduction;
    const index_t fit = rows_in_l2(paired_pitch(depth), kShareOfOperands);
    const index_t most = std::clamp<index_t>(fit / tile, 2, 8) * tile;
    return ceil_div(total, ceil_div(ceil_div(total, most), threads) * threads);
}

WinogradBlocking winograd_blocking(const Layer& layer, Algorithm algorithm, const WinogradTiles& image, index_t images,
                                   int threads, const KernelTable& kernels) {
    return winograd_schedule(layer, algorithm, image, images, threads, kernels).blocking;
}

}  // namespace resfuse
