#include "weights/weights.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "program/requantize.h"
#include "weights/panels.h"
#include "weights/real_weights.h"

namespace resfuse {

namespace {

// Calls f(place, channel) for every output channel and where the kernels read its values: by channel for small groups,
// by panel for all others.
template <class F>
void for_each_place(const Layer& layer, const KernelTable& kernels, F f) {
    const PanelGrid grid = panel_grid(layer, kernels);
    const bool by_channel = has_small_groups(layer, kernels);
    const index_t group_cols = by_channel ? layer.out_channels : layer.group_out();
    const index_t group_pitch = by_channel ? 0 : grid.per_group * grid.tile_cols;
    for (index_t k = 0; k < layer.out_channels; ++k)
        f(k / group_cols * group_pitch + k % group_cols, static_cast<std::size_t>(k));
}

std::size_t places(const Layer& layer, const KernelTable& kernels) {
    const PanelGrid grid = panel_grid(layer, kernels);
    return static_cast<std::size_t>(grid.total * grid.tile_cols);
}

AlignedFloats per_panel(const Layer& layer, const KernelTable& kernels, const std::vector<double>& values, float none,
                        std::size_t behind = 0) {
    AlignedFloats laid(places(layer, kernels) + behind);
    std::fill_n(laid.data(), laid.size(), none);
    if (!values.empty())
        for_each_place(layer, kernels,
                       [&](index_t place, std::size_t k) { laid.data()[place] = static_cast<float>(values[k]); });
    return laid;
}

template <class F>
AlignedBytes int32_per_panel(const Layer& layer, const KernelTable& kernels, F value) {
    AlignedBytes laid(places(layer, kernels) * sizeof(std::int32_t));
    auto* const values = reinterpret_cast<std::int32_t*>(laid.data());
    std::fill_n(values, places(layer, kernels), 0);
    for_each_place(layer, kernels, [&](index_t place, std::size_t k) { values[place] = value(k); });
    return laid;
}

// Affine layers': as the channels are.
AlignedFloats by_channel(const Layer& layer, const std::vector<double>& values, float none, std::size_t behind = 0) {
    AlignedFloats laid(static_cast<std::size_t>(layer.out_channels) + behind);
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
    if (!source.steps.empty() && source.steps.size() != static_cast<std::size_t>(layer.out_channels))
        throw std::invalid_argument(layer.name + ": steps has " + std::to_string(source.steps.size()) +
                                    " values, want " + std::to_string(layer.out_channels));
    for (const float step : source.steps)
        if (!std::isnormal(step) || step < 0.0f)
            throw std::invalid_argument(layer.name + ": steps has " + std::to_string(step) +
                                        ", want positive, normal numbers");
    if (!source.means.empty() && source.means.size() != static_cast<std::size_t>(layer.in_channels))
        throw std::invalid_argument(layer.name + ": means has " + std::to_string(source.means.size()) +
                                    " values, want " + std::to_string(layer.in_channels));
    for (const float mean : source.means)
        if (!std::isfinite(mean))
            throw std::invalid_argument(layer.name + ": means has " + std::to_string(mean) + ", want finite numbers");
    if (!source.lost.empty() && source.lost.size() != static_cast<std::size_t>(layer.out_channels))
        throw std::invalid_argument(layer.name + ": lost has " + std::to_string(source.lost.size()) + " values, want " +
                                    std::to_string(layer.out_channels));
    Entry& entry = entries_[index];
    entry.scale = per_panel(layer, program_->kernels(), source.scale, 1.0f);
    entry.bias = per_panel(layer, program_->kernels(), source.bias, 0.0f);
    entry.source = std::move(source);
}

void WeightSet::set_affine(std::size_t index, const std::vector<double>& scale, const std::vector<double>& bias) {
    if (index >= entries_.size() || !program_->layers()[index].is_scaled())
        throw std::invalid_argument("layer " + std::to_string(index) + " takes no scale and bias");
    const Layer& layer = program_->layers()[index];
    check_channels(layer, scale.size(), bias.size());
    Entry& entry = entries_[index];
    entry.scale = by_channel(layer, scale, 1.0f);
    entry.bias = by_channel(layer, bias, 0.0f);
}

void WeightSet::set_slopes(std::size_t index, const std::vector<double>& slopes) {
    const Layer& layer = program_->layers().at(index);
    if (layer.activation != Activation::prelu) throw std::invalid_argument(layer.name + ": takes no slopes");
    const auto channels = static_cast<std::size_t>(layer.out_channels);
    if (slopes.size() != 1 && slopes.size() != channels)
        throw std::invalid_argument(layer.name + ": slopes has " + std::to_string(slopes.size()) +
                                    " values, want 1 or " + std::to_string(channels));
    const std::vector<double> all = slopes.size() == 1 ? std::vector<double>(channels, slopes[0]) : slopes;
    const auto behind = static_cast<std::size_t>(program_->kernels().vector_floats);
    entries_[index].slopes = layer.kind == LayerKind::conv ? per_panel(layer, program_->kernels(), all, 0.0f, behind)
                                                           : by_channel(layer, all, 0.0f, behind);
}

void WeightSet::prepare(const std::vector<const ConvAlgorithm*>& algorithms, int threads) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        const bool conv = program_->layers()[i].kind == LayerKind::conv;
        if (!conv && !program_->layers()[i].is_scaled()) continue;
        if (entries_[i].scale.empty() ||
            (program_->layers()[i].activation == Activation::prelu && entries_[i].slopes.empty()))
            throw std::invalid_argument(program_->layers()[i].name + ": weights were not set");
        if (!conv) continue;
        AlignedBytes& packed = entries_[i].packed.at(algorithms[i]);
        if (!packed.empty()) continue;
        const Layer& layer = program_->layers()[i];
        AlignedBytes made(algorithms[i]->packed_bytes(layer, program_->kernels()));
        const RealWeights real(layer, entries_[i].source, threads);
        Int8Weights int8;
        if (layer.is_int8()) {
            int8 = quantize_weights(layer, real.source(), threads);
            if (entries_[i].offset.empty()) finish_int8(i, int8);  // else somebody may read it
        }
        algorithms[i]->pack({layer, real.source(), entries_[i].scale.data(), int8.weights.data(), program_->kernels(),
                             threads, made.data()});
        packed = std::move(made);
    }
}

bool WeightSet::is_prepared(const std::vector<const ConvAlgorithm*>& algorithms) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        if (program_->layers()[i].kind != LayerKind::conv) continue;
        const auto packed = entries_[i].packed.find(algorithms[i]);
        if (packed == entries_[i].packed.end() || packed->second.empty()) return false;
    }
    return true;
}

// In units of the output's steps, or in real numbers where those are made of it (int8_units).
void WeightSet::finish_int8(std::size_t index, const Int8Weights& weights) {
    Entry& entry = entries_[index];
    const Layer& layer = program_->layers()[index];
    const KernelTable& kernels = program_->kernels();
    const double units = int8_units(*program_, layer);
    const double zero_of_residual = layer.residual >= 0 && program_->type(layer.residual) == DType::u8
                                        ? static_cast<double>(program_->range(layer.residual).zero_point) *
                                              static_cast<double>(residual_factor(*program_, layer))
                                        : 0.0;
    std::vector<double> scale, bias;
    for (std::size_t k = 0; k < weights.steps.size(); ++k) {
        const double folded = entry.source.scale.empty() ? 1.0 : entry.source.scale[k];
        const double added = entry.source.bias.empty() ? 0.0 : entry.source.bias[k];
        scale.push_back(static_cast<double>(layer.reads->scale) * static_cast<double>(weights.steps[k]) * folded *
                        units);
        bias.push_back((added + folded * weights.lost[k]) * units - zero_of_residual);
    }
    entry.scale = per_panel(layer, kernels, scale, 1.0f);
    entry.bias = per_panel(layer, kernels, bias, 0.0f);
    // A channel's sums lie between 255 times its negative weights and 255 times its positive ones.
    entry.centre = int32_per_panel(layer, kernels, [&](std::size_t k) {
        return static_cast<std::int32_t>(std::int64_t{255} * weights.sums[k] / 2);
    });
    entry.offset =
        int32_per_panel(layer, kernels, [&](std::size_t k) { return -layer.reads->zero_point * weights.sums[k]; });
    if (const int taken = kernels.int8.taken_from_operands; taken != 0)
        entry.direct_offset = int32_per_panel(
            layer, kernels, [&](std::size_t k) { return (taken - layer.reads->zero_point) * weights.sums[k]; });
}

Int8Weights WeightSet::int8(std::size_t index, int threads) const {
    const Layer& layer = program_->layers()[index];
    const RealWeights real(layer, entries_[index].source, threads);
    return quantize_weights(layer, real.source(), threads);
}

const void* WeightSet::packed(std::size_t layer, const ConvAlgorithm& algorithm) const {
    return entries_[layer].packed.find(&algorithm)->second.data();
}

std::size_t WeightSet::bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::size_t bytes = 0;
    for (const Entry& entry : entries_) {
        bytes +=
            entry.bias.size() * sizeof(float) + entry.offset.size() + entry.direct_offset.size() + entry.centre.size();
        for (const auto& [algorithm, packed] : entry.packed) bytes += packed.size();
    }
    return bytes;
}

}  // namespace resfuse
