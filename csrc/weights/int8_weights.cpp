#include "weights/int8_weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>

#include "machine/threads.h"

namespace resfuse {

namespace {

constexpr float kLargest = 127.0f;

// One channel's weights in the order of Int8Weights.
void read_channel(const Layer& layer, const WeightSource& source, index_t k, std::vector<float>& to) {
    const auto& [stride_k, stride_c, stride_h, stride_w] = source.strides;
    auto at = to.begin();
    for (index_t r = 0; r < layer.window.kernel_h; ++r)
        for (index_t s = 0; s < layer.window.kernel_w; ++s) {
            const float* const tap = source.weight + k * stride_k + r * stride_h + s * stride_w;
            for (index_t c = 0; c < layer.group_in(); ++c) *at++ = tap[c * stride_c];
        }
}

struct Sums {
    std::int64_t values = 0, magnitudes = 0;
};

Sums quantize_channel(const std::vector<float>& weights, float step, std::int8_t* to) {
    Sums sums;
    for (const float w : weights) {
        const double q = std::nearbyint(static_cast<double>(w) / static_cast<double>(step));
        const auto byte = static_cast<std::int8_t>(std::clamp(q, -128.0, 127.0));
        *to++ = byte;
        sums.values += byte;
        sums.magnitudes += std::abs(static_cast<int>(byte));
    }
    return sums;
}

// What a channel's mean output lacks for its rounded weights, given its input's means (Nagel et al., 2019,
// "Data-free quantization through weight equalization and bias correction", section 4.2).
double lost_mean(const std::vector<float>& weights, const std::int8_t* rounded, float step, const float* means,
                 index_t channels) {
    double lost = 0.0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
        const double error = static_cast<double>(weights[i]) - static_cast<double>(step) * rounded[i];
        lost += error * static_cast<double>(means[i % static_cast<std::size_t>(channels)]);
    }
    return lost;
}

}  // namespace

std::int64_t most_magnitude(const Layer& layer) {
    const Window& w = layer.window;
    const bool winograd = layer.groups == 1 && w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 &&
                          w.stride_w == 1 && !w.is_dilated();
    return winograd ? ((std::int64_t{1} << 26) - 1) / 255 : 0;
}

Int8Weights quantize_weights(const Layer& layer, const WeightSource& source, int threads) {
    const std::size_t channels = static_cast<std::size_t>(layer.out_channels);
    const std::size_t depth =
        static_cast<std::size_t>(layer.window.kernel_h * layer.window.kernel_w * layer.group_in());
    Int8Weights made{std::vector<std::int8_t>(channels * depth), std::vector<float>(channels),
                     std::vector<std::int32_t>(channels), std::vector<double>(channels)};
    const bool given = !source.steps.empty();
    const std::int64_t most = most_magnitude(layer);
    std::atomic<bool> finite{true}, within{true};
#pragma omp parallel num_threads(usable_threads(threads))
    {
        std::vector<float> weights(depth);
#pragma omp for schedule(static)
        for (index_t channel = 0; channel < layer.out_channels; ++channel) {
            const std::size_t k = static_cast<std::size_t>(channel);
            read_channel(layer, source, channel, weights);
            float largest = 0.0f;
            bool all_finite = true;
            for (const float w : weights) {
                largest = std::max(largest, std::fabs(w));
                all_finite &= std::isfinite(w);
            }
            if (!all_finite) {
                finite = false;
                continue;
            }
            float step = given ? source.steps[k] : largest / kLargest;
            // Of a channel of zeros, or of numbers so small that their step would be none: any step gives zeros.
            if (!given && !std::isnormal(step)) step = 1.0f;
            Sums sums = quantize_channel(weights, step, made.weights.data() + k * depth);
            if (given && most > 0 && sums.magnitudes > most) within = false;
            while (!given && most > 0 && sums.magnitudes > most) {
                step *= 1.001f * static_cast<float>(sums.magnitudes) / static_cast<float>(most);
                sums = quantize_channel(weights, step, made.weights.data() + k * depth);
            }
            made.steps[k] = step;
            made.sums[k] = static_cast<std::int32_t>(sums.values);
            if (!source.lost.empty()) {
                made.lost[k] = source.lost[k];
            } else if (!source.means.empty()) {
                const index_t group = channel / (layer.out_channels / layer.groups);
                made.lost[k] = lost_mean(weights, made.weights.data() + k * depth, step,
                                         source.means.data() + group * layer.group_in(), layer.group_in());
            }
        }
    }
    if (!finite)
        throw std::invalid_argument(layer.name + ": weight has values that are not finite: no bytes stand for them");
    if (!within && layer.algorithm != "direct")
        throw std::invalid_argument(layer.name +
                                    ": with the given steps its sums are too large for Winograd's algorithm, want "
                                    "algorithm 'direct'");
    return made;
}

}  // namespace resfuse
