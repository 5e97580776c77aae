#include "reference.h"

#include <algorithm>
#include <cmath>

namespace fuzz {

using namespace resfuse;

namespace {

double activated(const Layer& layer, double x) {
    switch (layer.activation) {
        case Activation::relu:
            return x < 0 ? 0 : x;
        case Activation::tanh:
            return std::tanh(x);
        case Activation::sigmoid:
            return 1 / (1 + std::exp(-x));
        case Activation::silu:
            return x / (1 + std::exp(-x));
        case Activation::gelu:
            return x * 0.5 * std::erfc(-x * M_SQRT1_2);
        case Activation::leaky_relu:
            return x > 0 ? x : x * static_cast<double>(layer.slope);
        case Activation::relu6:
            return std::clamp(x, 0.0, 6.0);
        case Activation::hardsigmoid:
            return std::clamp(x + 3, 0.0, 6.0) / 6;
        case Activation::hardswish:
            return x * std::clamp(x + 3, 0.0, 6.0) / 6;
        case Activation::mish:
            return x * std::tanh(std::log1p(std::exp(x)));
        case Activation::elu:
            return x > 0 ? x : static_cast<double>(layer.slope) * std::expm1(x);
        case Activation::none:
        case Activation::softmax:
            return x;
    }
    return x;
}

void softmax(double* x, index_t n) {
    const double largest = *std::max_element(x, x + n);
    double sum = 0;
    for (index_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - largest);
    for (index_t i = 0; i < n; ++i) x[i] /= sum;
}

// Calls f(y, x, r, s) for the taps of a window that lie in the image.
template <class F>
void for_taps(const Window& w, const Images& in, index_t oy, index_t ox, F f) {
    for (index_t r = 0; r < w.kernel_h; ++r)
        for (index_t s = 0; s < w.kernel_w; ++s) {
            const index_t y = oy * w.stride_h - w.pad_top + r * w.dilation_h;
            const index_t x = ox * w.stride_w - w.pad_left + s * w.dilation_w;
            if (y >= 0 && y < in.height && x >= 0 && x < in.width) f(y, x, r, s);
        }
}

double convolved(const Layer& layer, const LayerWeights& weights, Images& in, index_t n, index_t oy, index_t ox,
                 index_t k) {
    const Window& w = layer.window;
    const index_t depth = layer.in_channels / layer.groups;
    const index_t first = k / (layer.out_channels / layer.groups) * depth;
    double sum = 0;
    for_taps(w, in, oy, ox, [&](index_t y, index_t x, index_t r, index_t s) {
        for (index_t c = 0; c < depth; ++c) {
            const index_t i = ((k * depth + c) * w.kernel_h + r) * w.kernel_w + s;
            sum += static_cast<double>(weights.weight[static_cast<std::size_t>(i)]) * in.at(n, y, x, first + c);
        }
    });
    return sum;
}

double pooled(const Layer& layer, Images& in, index_t n, index_t oy, index_t ox, index_t c) {
    const Window& w = layer.window;
    const bool largest = layer.kind == LayerKind::max_pool;
    double sum = 0, most = -HUGE_VAL;
    index_t inside = 0;
    for_taps(w, in, oy, ox, [&](index_t y, index_t x, index_t, index_t) {
        sum += in.at(n, y, x, c);
        most = std::max(most, in.at(n, y, x, c));
        ++inside;
    });
    if (largest) return most;
    if (!layer.counts_padding) return sum / static_cast<double>(inside);
    const index_t y = oy * w.stride_h - w.pad_top, x = ox * w.stride_w - w.pad_left;
    const index_t rows = std::min(y + w.kernel_h, in.height + w.pad_bottom) - y;
    const index_t cols = std::min(x + w.kernel_w, in.width + w.pad_right) - x;
    return sum / static_cast<double>(rows * cols);
}

double averaged(Images& in, index_t n, index_t c) {
    double sum = 0;
    for (index_t y = 0; y < in.height; ++y)
        for (index_t x = 0; x < in.width; ++x) sum += in.at(n, y, x, c);
    return sum / static_cast<double>(in.height * in.width);
}

}  // namespace

void evaluate(const Plan& plan, const std::vector<LayerWeights>& weights, std::vector<Images>& buffers) {
    for (std::size_t l = 0; l < plan.layers().size(); ++l) {
        const Layer& layer = plan.layers()[l];
        const auto buffer = [&](int b) -> Images& { return buffers[static_cast<std::size_t>(b)]; };
        Images &in = buffer(layer.input), &out = buffer(layer.output);
        const Extent extent = plan.extent(layer.output);
        out = {plan.batch(), extent.h, extent.w, layer.out_channels, {}};
        out.values.resize(static_cast<std::size_t>(out.batch * out.height * out.width * out.channels));
        const auto scale = [&](index_t k) {
            return weights[l].scale.empty() ? 1.0 : weights[l].scale[static_cast<std::size_t>(k)];
        };
        const auto bias = [&](index_t k) {
            return weights[l].bias.empty() ? 0.0 : static_cast<double>(weights[l].bias[static_cast<std::size_t>(k)]);
        };
        for (index_t n = 0; n < out.batch; ++n)
            for (index_t y = 0; y < out.height; ++y)
                for (index_t x = 0; x < out.width; ++x) {
                    for (index_t k = 0; k < out.channels; ++k) {
                        double& to = out.at(n, y, x, k);
                        if (layer.kind == LayerKind::conv) {
                            to = scale(k) * convolved(layer, weights[l], in, n, y, x, k) + bias(k);
                        } else if (layer.kind == LayerKind::affine) {
                            const double factor = layer.gate >= 0 ? buffer(layer.gate).at(n, 0, 0, k) : scale(k);
                            to = factor * in.at(n, y, x, k) + bias(k);
                        } else {
                            to = layer.kind == LayerKind::global_avg_pool ? averaged(in, n, k)
                                                                          : pooled(layer, in, n, y, x, k);
                        }
                        if (layer.residual >= 0) to += buffer(layer.residual).at(n, y, x, k);
                        to = activated(layer, to);
                    }
                    if (layer.activation == Activation::softmax) softmax(&out.at(n, y, x, 0), out.channels);
                }
    }
}

}  // namespace fuzz
