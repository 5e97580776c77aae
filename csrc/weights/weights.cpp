#include "weights/weights.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "weights/panels.h"

namespace resfuse {

namespace {

// Per-channel values laid out as the kernels read them: by channel for small groups, by panel for all others.
template <class T>
AlignedFloats per_panel(const Layer& layer, const KernelTable& kernels, const std::vector<T>& values, float none) {
    const PanelGrid grid = panel_grid(layer, kernels);
    AlignedFloats laid(static_cast<std::size_t>(grid.total * grid.tile_cols));
    std::fill_n(laid.data(), laid.size(), none);
    const bool by_channel = has_small_groups(layer, kernels);
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

WeightSet::WeightSet(std::shared_ptr<const Program> program) : program_(std::move(program)) {
    program_->freeze();
    entries_.resize(program_->layers().size());
    for (Entry& entry : entries_)
        for (const ConvAlgorithm* const algorithm : conv_algorithms()) entry.packed[algorithm];
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

void WeightSet::prepare(const std::vector<const ConvAlgorithm*>& algorithms, int threads) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        const LayerKind kind = program_->layers()[i].kind;
        if (kind != LayerKind::conv && kind != LayerKind::affine) continue;
        if (entries_[i].scale.empty())
            throw std::invalid_argument(program_->layers()[i].name + ": weights were not set");
        if (kind == LayerKind::affine) continue;
        AlignedBytes& packed = entries_[i].packed.at(algorithms[i]);
        if (!packed.empty()) continue;
        const Layer& layer = program_->layers()[i];
        AlignedBytes made(algorithms[i]->packed_bytes(layer, program_->kernels()));
        algorithms[i]->pack(
            {layer, entries_[i].source, entries_[i].scale.data(), program_->kernels(), threads, made.data()});
        packed = std::move(made);
    }
}

const void* WeightSet::packed(std::size_t layer, const ConvAlgorithm& algorithm) const {
    return entries_[layer].packed.find(&algorithm)->second.data();
}

std::size_t WeightSet::bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::size_t bytes = 0;
    for (const Entry& entry : entries_) {
        bytes += entry.bias.size() * sizeof(float);
        for (const auto& [algorithm, packed] : entry.packed) bytes += packed.size();
    }
    return bytes;
}

}  // namespace resfuse
