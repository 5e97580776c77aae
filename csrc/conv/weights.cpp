#include "conv/weights.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "conv/balance.h"
#include "machine/threads.h"
#include "plan/step.h"

namespace resfuse {

namespace {

// Panels of a layer whose weights are balanced: of Strassen's algorithm one for both halves of the output channels.
index_t balanced_panels(Algorithm algorithm, const PanelGrid& grid) {
    return algorithm == Algorithm::strassen ? grid.total / 2 : grid.total;
}

index_t balanced_panel_floats(const Layer& layer, Algorithm algorithm, const KernelTable& kernels) {
    const index_t rows = algorithm == Algorithm::strassen
                             ? kStrassenProducts * (layer.in_channels / 2)
                             : kernels.paired_matrix_rows(panel_grid(layer, kernels).reduction);
    return rows * kernels.tile_cols;
}

bool is_balanced(Algorithm algorithm) { return algorithm == Algorithm::strassen || algorithm == Algorithm::paired; }

// Matrices of a layer of small groups.
index_t group_points(const Layer& layer, Algorithm algorithm, const KernelTable& kernels) {
    if (algorithm == Algorithm::grouped) return layer.window.kernel_h * layer.window.kernel_w;
    const index_t points = winograd_kernels(kernels, Algorithm::winograd_f2).weight_points;
    return points * points;
}

std::size_t packed_floats(const Layer& layer, Algorithm algorithm, const KernelTable& kernels) {
    if (layer.has_small_groups(kernels.vector_floats)) {
        const index_t vectors = ceil_div(layer.out_channels, kernels.vector_floats);
        return static_cast<std::size_t>(vectors * kernels.vector_floats * group_points(layer, algorithm, kernels) *
                                        layer.group_in());
    }
    const PanelGrid grid = panel_grid(layer, kernels);
    if (algorithm == Algorithm::direct) return static_cast<std::size_t>(grid.total * grid.reduction * grid.tile_cols);
    if (algorithm == Algorithm::winograd_rows)
        return static_cast<std::size_t>(grid.total * winograd_rows_panel_floats(layer, grid));
    if (is_balanced(algorithm))
        return static_cast<std::size_t>(balanced_panels(algorithm, grid) *
                                            balanced_panel_floats(layer, algorithm, kernels) +
                                        grid.total * grid.tile_cols + grid.reduction);
    const WinogradKernels& winograd = winograd_kernels(kernels, algorithm);
    return static_cast<std::size_t>(winograd.weight_points * winograd.weight_points * layer.group_in() * grid.total *
                                    grid.tile_cols);
}

// All but what depends on the panel.
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

// As GroupedArgs has them. The scale stays with the epilogue.
void pack_groups(const Layer& layer, Algorithm algorithm, const WeightSource& source, const KernelTable& kernels,
                 float* packed) {
    const auto pack_panel = algorithm == Algorithm::grouped_f2 ? winograd_kernels(kernels, Algorithm::winograd_f2).pack
                                                               : kernels.pack_direct;
    const index_t points = group_points(layer, algorithm, kernels), group = layer.group_in();
    const index_t vector = kernels.vector_floats;
    AlignedFloats panel(static_cast<std::size_t>(points * group * kernels.tile_cols));
    PackPanelArgs args = pack_args(layer, source);
    args.packed = panel.data();
    for (index_t k = 0; k < layer.out_channels; k += vector) {
        args.first_k = k;
        args.cols = std::min(vector, layer.out_channels - k);
        pack_panel(args);
        for (index_t point = 0; point < points; ++point)
            for (index_t i = 0; i < group; ++i)
                for (index_t lane = 0; lane < vector; ++lane)
                    *packed++ = panel.data()[(point * group + (lane ^ i) % group) * kernels.tile_cols + lane];
    }
}

// Panels, and the powers of two that output channels and steps of the reduction were divided by.
void pack_strassen(const Layer& layer, const WeightSource& source, const KernelTable& kernels, int threads,
                   float* packed, float* powers, float* step_powers) {
    const PanelGrid grid = panel_grid(layer, kernels);
    const index_t panel_floats = balanced_panel_floats(layer, Algorithm::strassen, kernels);
    const index_t half_k = layer.out_channels / 2;
    const PointwiseWeights weights{source.weight, source.strides[0], source.strides[1], layer.out_channels,
                                   layer.in_channels};
    output_powers(weights, threads, powers);
    input_powers(weights, powers, threads, step_powers);
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
    for (index_t p = 0; p < grid.total / 2; ++p) {
        const index_t first_k = p * grid.tile_cols;
        kernels.pack_strassen({.weight = source.weight,
                               .stride_k = source.strides[0],
                               .stride_c = source.strides[1],
                               .first_k = first_k,
                               .half_k = half_k,
                               .half_c = layer.in_channels / 2,
                               .powers = {powers + first_k, powers + half_k + first_k},
                               .channel_scale = step_powers,
                               .packed = packed + p * panel_floats});
    }
}

void pack_paired(const Layer& layer, const WeightSource& source, const KernelTable& kernels, int threads, float* packed,
                 float* powers, float* step_powers) {
    const PanelGrid grid = panel_grid(layer, kernels);
    const index_t panel_floats = balanced_panel_floats(layer, Algorithm::paired, kernels), depth = grid.reduction;
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

// Per-channel values laid out as the kernels read them: by channel for small groups, by panel for all others.
template <class T>
AlignedFloats per_panel(const Layer& layer, const KernelTable& kernels, const std::vector<T>& values, float none) {
    const PanelGrid grid = panel_grid(layer, kernels);
    AlignedFloats laid(static_cast<std::size_t>(grid.total * grid.tile_cols));
    std::fill_n(laid.data(), laid.size(), none);
    const bool by_channel = layer.has_small_groups(kernels.vector_floats);
    const index_t group_cols = by_channel ? layer.out_channels : layer.group_out();
    const index_t group_pitch = by_channel ? 0 : grid.per_group * grid.tile_cols;
    for (std::size_t i = 0; i < values.size(); ++i) {
        const index_t k = static_cast<index_t>(i);
        laid.data()[k / group_cols * group_pitch + k % group_cols] = static_cast<float>(values[i]);
    }
    return laid;
}

// Affine layers': as the channels are.
template <class T>
AlignedFloats by_channel(const Layer& layer, const std::vector<T>& values, float none) {
    AlignedFloats laid(static_cast<std::size_t>(layer.out_channels));
    std::fill_n(laid.data(), laid.size(), none);
    for (std::size_t i = 0; i < values.size(); ++i) laid.data()[i] = static_cast<float>(values[i]);
    return laid;
}

void check_channels(const Layer& layer, std::size_t scales, std::size_t biases) {
    const std::size_t channels = static_cast<std::size_t>(layer.out_channels);
    for (const auto& [what, values] : {std::pair{"scale", scales}, std::pair{"bias", biases}})
        if (values != 0 && values != channels)
            throw std::invalid_argument(layer.name + ": " + what + " has " + std::to_string(values) + " values, want " +
                                        std::to_string(channels));
}

}  // namespace

PanelGrid panel_grid(const Layer& layer, const KernelTable& kernels) {
    const index_t per_group = (layer.group_out() + kernels.tile_cols - 1) / kernels.tile_cols;
    return {per_group, per_group * layer.groups, layer.window.kernel_h * layer.window.kernel_w * layer.group_in(),
            layer.group_out(), kernels.tile_cols};
}

index_t winograd_rows_panel_floats(const Layer& layer, const PanelGrid& grid) {
    return kRowProducts * layer.window.kernel_h * layer.in_channels * grid.tile_cols;
}

std::size_t packed_bytes(const Layer& layer, Algorithm algorithm, const KernelTable& kernels) {
    return packed_floats(layer, algorithm, kernels) * sizeof(float);
}

WeightSet::WeightSet(std::shared_ptr<const Program> program) : program_(std::move(program)) {
    program_->freeze();
    entries_.resize(program_->layers().size());
}

void WeightSet::set(std::size_t index, WeightSource source) {
    if (index >= entries_.size() || program_->layers()[index].kind != LayerKind::conv)
        throw std::invalid_argument("layer " + std::to_string(index) + " takes no weights");
    const Layer& layer = program_->layers()[index];
    check_channels(layer, source.scale.size(), source.bias.size());
    Entry& entry = entries_[index];
    entry.scale = per_panel(layer, program_->kernels(), source.scale, 1.0f);
    entry.bias = per_panel(layer, program_->kernels(), source.bias, 0.0f);
    entry.source = std::move(source);
}

void WeightSet::set_affine(std::size_t index, const std::vector<double>& scale, const std::vector<float>& bias) {
    if (index >= entries_.size() || program_->layers()[index].kind != LayerKind::affine)
        throw std::invalid_argument("layer " + std::to_string(index) + " takes no scale and bias");
    const Layer& layer = program_->layers()[index];
    check_channels(layer, scale.size(), bias.size());
    Entry& entry = entries_[index];
    entry.scale = by_channel(layer, scale, 1.0f);
    entry.bias = by_channel(layer, bias, 0.0f);
}

void WeightSet::prepare(const std::vector<Algorithm>& algorithms, int threads) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        const LayerKind kind = program_->layers()[i].kind;
        if (kind != LayerKind::conv && kind != LayerKind::affine) continue;
        if (entries_[i].scale.empty())
            throw std::invalid_argument(program_->layers()[i].name + ": weights were not set");
        if (kind == LayerKind::affine) continue;
        if (entries_[i].packed[static_cast<std::size_t>(algorithms[i])].empty()) pack(i, algorithms[i], threads);
    }
}

void WeightSet::pack(std::size_t index, Algorithm algorithm, int threads) {
    const Layer& layer = program_->layers()[index];
    const KernelTable& kernels = program_->kernels();
    const WeightSource& source = entries_[index].source;
    AlignedFloats packed(packed_floats(layer, algorithm, kernels));
    if (layer.has_small_groups(kernels.vector_floats)) {
        pack_groups(layer, algorithm, source, kernels, packed.data());
    } else if (is_balanced(algorithm)) {
        pack_balanced(index, algorithm, threads, packed);
    } else {
        pack_panels(index, algorithm, threads, packed);
    }
    entries_[index].packed[static_cast<std::size_t>(algorithm)] = std::move(packed);
}

void WeightSet::pack_panels(std::size_t index, Algorithm algorithm, int threads, AlignedFloats& packed) const {
    const Layer& layer = program_->layers()[index];
    const KernelTable& kernels = program_->kernels();
    const WeightSource& source = entries_[index].source;
    const PanelGrid grid = panel_grid(layer, kernels);
    const index_t panel_floats = static_cast<index_t>(packed.size()) / grid.total;
    const auto pack_panel = algorithm == Algorithm::direct          ? kernels.pack_direct
                            : algorithm == Algorithm::winograd_rows ? kernels.pack_winograd_rows
                                                                    : winograd_kernels(kernels, algorithm).pack;
#pragma omp parallel for num_threads(usable_threads(threads)) schedule(static)
    for (index_t p = 0; p < grid.total; ++p) {
        PackPanelArgs args = pack_args(layer, source);
        args.scale = source.scale.empty() ? nullptr : source.scale.data();
        args.first_k = grid.channel(p);
        args.cols = grid.cols(p);
        args.packed = packed.data() + p * panel_floats;
        pack_panel(args);
    }
}

void WeightSet::pack_balanced(std::size_t index, Algorithm algorithm, int threads, AlignedFloats& packed) const {
    const Layer& layer = program_->layers()[index];
    const KernelTable& kernels = program_->kernels();
    const float* const entry_scale = entries_[index].scale.data();
    const PanelGrid grid = panel_grid(layer, kernels);
    float* const scale =
        packed.data() + balanced_panels(algorithm, grid) * balanced_panel_floats(layer, algorithm, kernels);
    float* const step_scale = scale + grid.total * grid.tile_cols;
    std::fill(scale, step_scale, 1.0f);
    const auto pack = algorithm == Algorithm::strassen ? pack_strassen : pack_paired;
    pack(layer, entries_[index].source, kernels, threads, packed.data(), scale, step_scale);
    for (index_t k = 0; k < layer.out_channels; ++k) scale[k] *= entry_scale[k];
}

BalancedWeights balanced_weights(const Layer& layer, Algorithm algorithm, const KernelTable& kernels,
                                 const float* packed) {
    const PanelGrid grid = panel_grid(layer, kernels);
    const index_t panel = balanced_panel_floats(layer, algorithm, kernels);
    const float* const scale = packed + balanced_panels(algorithm, grid) * panel;
    return {packed, panel, scale, scale + grid.total * grid.tile_cols};
}

const float* WeightSet::packed(std::size_t layer, Algorithm algorithm) const {
    return entries_[layer].packed[static_cast<std::size_t>(algorithm)].data();
}

std::size_t WeightSet::bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::size_t floats = 0;
    for (const Entry& entry : entries_) {
        floats += entry.bias.size();
        for (const AlignedFloats& packed : entry.packed) floats += packed.size();
    }
    return floats * sizeof(float);
}

}  // namespace resfuse
